"""Near-copies: found among thousands by a handful of keys, as exactly as by comparing all with all."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import NewAnnotation, model_annotator, record_annotation
from annotation_server.projects.models import Project
from annotation_server.runs.models import Endpoint, Run, RunChunk, RunTask, WordingKey
from annotation_server.runs.near_copies import KEYS, Wording, claim_wordings, find_near_copy, keys_of
from annotation_server.runs.services import create_endpoint
from annotation_server.runs.words import contained, likeness, shingles, words
from tests.server.factories import make_project, make_sample

pytestmark = pytest.mark.django_db

TEXT = (
    "A casts a soft shadow to the left and B has none at all under its foot, while C hides its own behind a box and "
    "D throws two of them from a single lamp that stands by the window."
)
"""37 words."""


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def endpoint() -> Endpoint:
    return create_endpoint(name="local", base_url="http://127.0.0.1:9/v1", model="m")


def make_run_tasks(project: Project, endpoint: Endpoint, count: int) -> list[RunTask]:
    run = Run.objects.create(project=project, endpoint=endpoint, approach="automated", prompt_version="ask-1")
    chunk = RunChunk.objects.create(run=run, ordinal=0, tasks=count)
    tasks = [make_sample(project)[1][0] for _ in range(count)]
    return [RunTask.objects.create(run=run, chunk=chunk, task=task) for task in tasks]


def accept(project: Project, run_task: RunTask, text: str) -> bool:
    """As the ledger does: False where it is a near-copy."""
    if claim_wordings(project.pk, 0.8, [Wording(run_task, text)]):
        return False
    run_task.annotation = record_annotation(
        NewAnnotation(
            task=run_task.task,
            annotator=model_annotator("local"),
            approach=Approach.AUTOMATED,
            answer=frozenset("A"),
            rationale=text,
            idempotency_key=f"t{run_task.pk}",
        )
    )
    run_task.state = RunTask.State.ACCEPTED
    run_task.save()
    return True


def test_it_works(project: Project, endpoint: Endpoint) -> None:
    first, second, third = make_run_tasks(project, endpoint, 3)
    assert accept(project, first, TEXT)
    changed = TEXT.replace("window", "door")
    found = find_near_copy(project.pk, 0.8, Wording(second, changed))
    assert found is not None
    assert (found.run_task_id, round(found.likeness, 2)) == (first.pk, 0.95)
    assert not accept(project, second, changed)
    assert accept(
        project, third, "A stands in the sun and its shadow falls far to the right; B, C and D hover in the air."
    )
    assert set(WordingKey.objects.values_list("run_task", flat=True)) == {first.pk, third.pk}


def test_the_words_of_the_same_task_are_its_own(project: Project, endpoint: Endpoint) -> None:
    (first,) = make_run_tasks(project, endpoint, 1)
    assert accept(project, first, TEXT)
    run = Run.objects.create(project=project, endpoint=endpoint, approach="answer_driven", prompt_version="explain-1")
    again = RunTask.objects.create(run=run, chunk=RunChunk.objects.create(run=run, ordinal=0, tasks=1), task=first.task)
    assert claim_wordings(project.pk, 0.8, [Wording(again, TEXT)]) == {}


def test_of_several_at_once_the_first_counts(project: Project, endpoint: Endpoint) -> None:
    rows = make_run_tasks(project, endpoint, 3)
    copies = claim_wordings(project.pk, 0.8, [Wording(row, TEXT) for row in rows])
    assert {pk: copy.run_task_id for pk, copy in copies.items()} == {rows[1].pk: rows[0].pk, rows[2].pk: rows[0].pk}


def test_a_text_without_words_is_like_no_other(project: Project, endpoint: Endpoint) -> None:
    assert claim_wordings(project.pk, 0.8, [Wording(row, "…!") for row in make_run_tasks(project, endpoint, 2)]) == {}


def test_keys_never_change() -> None:
    """They stay in the database: another program, or another machine, has to find them again."""
    assert keys_of(shingles(words("A casts a shadow."))) == KEPT
    assert len(set(keys_of(shingles(words(TEXT))))) == KEYS


KEPT = [
    -5290390725324502390,
    4080276371996785256,
    8527028891335871700,
    -8856738666112929903,
    6458469992922710499,
    -6101474534874082207,
]


def test_what_is_counted_as_a_word() -> None:
    assert words("It's 2 m, “Fläche” 影子 ok_1") == ["it", "s", "2", "m", "fläche", "影", "子", "ok", "1"]
    assert shingles(["a", "b"]) == {("a", "b")}
    assert shingles([]) == frozenset()
    assert likeness(shingles(list("abcd")), shingles(list("abce"))) == pytest.approx(1 / 3)
    assert likeness(shingles([]), shingles([])) == 0
    assert contained(shingles(list("abc")), shingles(list("abcd"))) == 1


def spoilt(text: str, dice: random.Random, changes: int) -> str:
    said = text.split()
    for at in dice.sample(range(len(said)), changes):
        said[at] = dice.choice(["pine", "oak", "elm", "fir", "yew", "ash"])
    return " ".join(said)


def test_keys_find_nearly_all_that_comparing_all_with_all_finds() -> None:
    """A thousand pairs at every likeness, by the keys alone and by the naive comparison."""
    dice = random.Random(1)
    vocabulary = [f"word{number}" for number in range(400)]
    found = {True: [0, 0], False: [0, 0]}
    for _ in range(1000):
        one = " ".join(dice.choice(vocabulary) for _ in range(60))
        other = spoilt(one, dice, dice.choice((1, 2, 3, 20)))
        alike = likeness(shingles(words(one)), shingles(words(other)))
        if 0.3 < alike < 0.8:
            continue
        share = bool(set(keys_of(shingles(words(one)))) & set(keys_of(shingles(words(other)))))
        found[alike >= 0.8][share] += 1
    missed, met = found[True]
    assert missed / (missed + met) < 0.02
    left_alone, looked_at = found[False]
    assert looked_at / (left_alone + looked_at) < 0.25


def test_looking_costs_the_same_among_many_as_among_few(project: Project, endpoint: Endpoint) -> None:
    """Formulaic texts, the worst case: what is read and written does not grow with what is there."""
    dice = random.Random(2)
    rows = make_run_tasks(project, endpoint, 1)

    def texts(count: int) -> list[str]:
        return [
            " ".join(
                f"{letter}: the shadow falls {dice.choice(('left', 'right', 'far', 'short'))}, fine."
                for letter in "ABCD"
            )
            for _ in range(count)
        ]

    cost = []
    for many in (5, 2000):
        WordingKey.objects.bulk_create(
            [
                WordingKey(project=project, key=key, run_task=rows[0])
                for text in texts(many)
                for key in keys_of(shingles(words(text)))
            ],
            ignore_conflicts=True,
        )
        probe = make_run_tasks(project, endpoint, 1)[0]
        with CaptureQueriesContext(
            connection,
        ) as queries:
            find_near_copy(project.pk, 0.8, Wording(probe, texts(1)[0]))
            claim_wordings(project.pk, 1.1, [Wording(probe, texts(1)[0])])
        cost.append(len(queries))
    assert cost[0] == cost[1] == 3


@pytest.mark.django_db(transaction=True)
def test_of_two_workers_with_one_wording_at_one_moment_the_second_waits_and_finds_the_first(
    project: Project, endpoint: Endpoint
) -> None:
    first, second = make_run_tasks(project, endpoint, 2)
    written, looked = threading.Event(), threading.Event()

    def work_first() -> bool:
        with transaction.atomic():
            taken = accept(project, first, TEXT)
            written.set()
            # The second is on its way by now, and must not look before this transaction ends.
            assert not looked.wait(0.5)
        connection.close()
        return taken

    def work_second() -> bool:
        assert written.wait(5)
        with transaction.atomic():
            taken = accept(project, second, TEXT)
            looked.set()
        connection.close()
        return taken

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(work) for work in (work_first, work_second)]
    assert [result.result() for result in results] == [True, False]
