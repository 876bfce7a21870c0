"""The one door to the ledger: what is recorded, what is refused, what counts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from annotation_server.annotations.models import Annotation, Approach, GoldAnswer
from annotation_server.annotations.services import (
    AlreadyAnswered,
    AnnotationRefused,
    NewAnnotation,
    add_gold,
    annotator_for,
    import_annotator,
    model_annotator,
    record_annotations,
)
from annotation_server.tasks.models import Slot
from annotation_server.tasks.services import claim_next
from tests.server.factories import annotate, make_member, make_project, make_task

pytestmark = pytest.mark.django_db


def test_it_works() -> None:
    task = make_task()
    annotator = make_member(task.project)
    claim = claim_next(task.project, annotator)
    assert claim is not None

    saved = annotate(task, annotator, "CA", rationale=" B has no shadow. ")

    saved.refresh_from_db()
    assert saved.answer == {"A", "C"}
    assert saved.rationale == "B has no shadow."
    assert saved.standing == Annotation.Standing.VOTE
    assert saved.slot is not None
    assert saved.slot.state == Slot.State.DONE


def test_submitting_twice_keeps_one_annotation() -> None:
    task = make_task()
    annotator = make_member(task.project)

    first = annotate(task, annotator, "A", idempotency_key="k")
    again = annotate(task, annotator, "B", idempotency_key="k")

    assert first == again
    assert Annotation.objects.get().answer == {"A"}


def test_a_key_used_for_another_task_is_refused() -> None:
    project = make_project()
    annotator = make_member(project)
    annotate(make_task(project), annotator, "A", idempotency_key="k")

    with pytest.raises(AnnotationRefused, match="another task"):
        annotate(make_task(project), annotator, "A", idempotency_key="k")


def test_a_second_answer_of_the_same_person_is_refused() -> None:
    task = make_task(make_project(overlap=2))
    annotator = make_member(task.project)
    annotate(task, annotator, "A")

    with pytest.raises(AlreadyAnswered):
        annotate(task, annotator, "B")
    assert Annotation.objects.count() == 1


def test_a_late_submission_fills_the_slot_if_it_is_free() -> None:
    task = make_task()
    annotator = make_member(task.project)
    claim = claim_next(task.project, annotator)
    assert claim is not None
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(hours=1))

    assert annotate(task, annotator, "A").standing == "vote"


def test_a_submission_after_all_slots_are_filled_is_surplus() -> None:
    task = make_task()
    slow, quick = make_member(task.project), make_member(task.project)
    late = claim_next(task.project, slow)
    assert late is not None
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(hours=1))
    claim_next(task.project, quick)
    annotate(task, quick, "A")

    kept = annotate(task, slow, "B")

    assert kept.standing == "surplus"
    assert task.resolution.answer == {"A"}


def test_a_letter_the_task_does_not_have_is_refused() -> None:
    task = make_task(candidates=3)
    with pytest.raises(AnnotationRefused, match="'D' is not a candidate letter: expected some of A, B, C"):
        annotate(task, make_member(task.project), "AD")


def test_a_missing_rationale_is_refused_where_the_project_wants_one() -> None:
    task = make_task(make_project(rationale_required=True))
    with pytest.raises(AnnotationRefused, match="wants a rationale"):
        annotate(task, make_member(task.project), "A", rationale="  ")


def test_a_model_only_advises() -> None:
    task = make_task()
    saved = annotate(task, model_annotator("local"), "A", approach=Approach.AUTOMATED)
    assert saved.standing == "advice"
    assert Slot.objects.get().state == Slot.State.OPEN


@pytest.mark.parametrize("kind", ["person", "model"])
def test_approach_and_annotator_must_fit(kind: str) -> None:
    task = make_task()
    annotator = model_annotator("local") if kind == "model" else annotator_for(make_member(task.project))
    wrong = Approach.MANUAL if kind == "model" else Approach.AUTOMATED
    with pytest.raises(AnnotationRefused):
        annotate(task, annotator, "A", approach=wrong)


def test_one_refused_row_leaves_nothing_behind() -> None:
    project = make_project()
    source = import_annotator("a file")
    fine, bad = make_task(project), make_task(project, candidates=2)
    rows = [
        NewAnnotation(
            task=task, annotator=source, approach="manual", answer=frozenset("D"), idempotency_key=str(task.pk)
        )
        for task in (fine, bad)
    ]
    with pytest.raises(AnnotationRefused):
        record_annotations(rows)
    assert not Annotation.objects.exists()
    assert set(Slot.objects.values_list("state", flat=True)) == {"open"}


def test_an_import_votes_and_twice_is_once() -> None:
    project = make_project()
    source = import_annotator("a file")
    tasks = [make_task(project) for _ in range(3)]
    rows = [
        NewAnnotation(
            task=task, annotator=source, approach="manual", answer=frozenset("D"), idempotency_key=str(task.pk)
        )
        for task in tasks
    ]
    assert record_annotations(rows) == record_annotations(rows)
    assert Annotation.objects.filter(standing="vote").count() == 3
    assert claim_next(project, make_member(project)) is None


def test_gold_stands_and_cannot_be_changed_unnoticed() -> None:
    task = make_task()
    assert add_gold({task: frozenset("AB")}) == 1
    assert add_gold({task: frozenset("AB")}) == 0
    with pytest.raises(AnnotationRefused, match="another gold answer"):
        add_gold({task: frozenset("C")})
    assert GoldAnswer.objects.get().answer == {"A", "B"}
    assert task.resolution.source == "gold"


def test_characters_that_no_database_keeps_are_left_out() -> None:
    task = make_task()
    said = annotate(task, make_member(task.project), "A", rationale="A\x00 floats\ud800.\u202e")
    said.refresh_from_db()
    assert said.rationale == "A floats?.\u202e"
