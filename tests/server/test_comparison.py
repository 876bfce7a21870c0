"""What the three approaches cost, achieve and are like: small projects with the figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from django.db.models import F

from annotation_server.annotations.decisions import adjudicate, review
from annotation_server.annotations.models import Annotation, Approach, Resolution
from annotation_server.annotations.services import add_gold, import_annotator, withdraw
from annotation_server.projects.models import Membership, Project
from annotation_server.runs.comparison import ALL, Comparison, Line, Measure, Reference, choose, compare
from annotation_server.runs.comparison_queries import work_done
from annotation_server.runs.comparison_samples import sampled
from annotation_server.runs.comparison_scope import chosen_tasks
from annotation_server.runs.models import Attempt, RunTask
from annotation_server.tasks.models import Flag, Task
from tests.server.compared import make_run, settle
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db

SHADOW = "physical_shadow"


def make_tasks(project: Project, number: int, dimension: str = SHADOW) -> list[Task]:
    return [make_sample(project, dimensions=[dimension])[1][0] for _ in range(number)]


@pytest.fixture
def project() -> Project:
    """36 USD an hour are a cent a second."""
    return make_project(dimensions=[SHADOW], hourly_wage=Decimal(36))


def line(comparison: Comparison, approach: str, dimension: str = SHADOW) -> Line:
    (found,) = [line for line in comparison.of(dimension) if line.approach == approach]
    return found


def costs(of: Line) -> list[float | None]:
    """People, tokens, both."""
    return [of.people_usd, of.token_usd, of.cost_usd]


def test_it_works(project: Project) -> None:
    """Four tasks that all three worked on, a fifth that only a person did.

    manual: 10, 20, 30, 40 s and 400 s; over the four 100 s for 4 records: 25 s, 0.25 USD each.
    automated: 3 of 4 accepted; 0.01 + 0.02 + 0.03 USD for those, 0.06 for three refused calls: 0.12 / 3 = 0.04 USD.
    answer-driven: 2 of 4 accepted; people spent the same 100 s: 50 s, 0.50 USD per record; tokens 4 × 0.01 / 2 = 0.02.
    """
    person = make_member(project)
    tasks = make_tasks(project, 5)
    votes = [
        annotate(task, person, "A", seconds_spent=seconds, rationale="A stands.")
        for task, seconds in zip(tasks, (10, 20, 30, 40, 400), strict=True)
    ]
    automated, explained = make_run(project), make_run(project, Approach.ANSWER_DRIVEN)
    for task, usd in zip(tasks[:3], ("0.01", "0.02", "0.03"), strict=True):
        settle(automated, task, "A", "It stands on the ground.", calls=[(usd, 2000)])
    settle(automated, tasks[3], None, calls=[("0.02", 1000)] * 3)
    for task, vote in zip(tasks[:2], votes[:2], strict=True):
        settle(explained, task, "A", "Its shadow touches it.", given_from=vote)
    for task, vote in zip(tasks[2:4], votes[2:4], strict=True):
        settle(explained, task, None, given_from=vote)

    found = compare(project)

    assert (found.shared, found.tasks, found.project_tasks) == (True, {SHADOW: 4}, {SHADOW: 5})
    assert found.tried == ["manual", "automated", "answer_driven"]
    by_hand, by_model, both = (line(found, approach) for approach in found.tried)
    assert (by_hand.asked, by_hand.accepted, by_hand.acceptance) == (4, 4, 1.0)
    assert (by_hand.person_seconds, by_hand.median_person_seconds) == (25, 25)
    assert costs(by_hand) == pytest.approx([0.25, 0, 0.25])
    assert by_hand.model_seconds is None
    assert (by_model.asked, by_model.accepted, by_model.acceptance) == (4, 3, 0.75)
    assert costs(by_model) == pytest.approx([0, 0.04, 0.04])
    assert by_model.model_seconds == pytest.approx((3 * 2 + 3 * 1) / 3)
    assert by_model.median_model_seconds == 2
    assert by_model.person_seconds is None
    assert (both.asked, both.accepted, both.acceptance) == (4, 2, 0.5)
    assert costs(both) == pytest.approx([0.5, 0.02, 0.52])
    assert line(found, "manual", ALL) == replace(by_hand, dimension=ALL)

    over_all = compare(project, shared=False)
    assert over_all.tasks == {SHADOW: 5}
    assert line(over_all, "manual").people_usd == pytest.approx(1.0)  # 500 s for 5 records
    assert line(over_all, "automated").token_usd == pytest.approx(0.04)


# Costs


def test_time_and_money_that_led_to_nothing_is_part_of_the_price(project: Project) -> None:
    """Answered in 10 s, taken back, answered again in 30 s, and a second task skipped: 40 s for 1 of 2 records."""
    person = make_member(project)
    first, second = make_tasks(project, 2)
    withdraw(annotate(first, person, "A", seconds_spent=10), person)
    annotate(first, person, "B", seconds_spent=30)
    Flag.objects.create(task=second, person=person, reason=Flag.Reason.UNCLEAR, skipped=True)
    Flag.objects.create(task=second, person=make_member(project), reason=Flag.Reason.OTHER, skipped=False)
    by_hand = line(compare(project), "manual")
    assert (by_hand.asked, by_hand.accepted) == (2, 1)
    assert by_hand.people_usd == pytest.approx(0.4)


def test_answers_without_a_measured_time_count_at_the_mean(project: Project) -> None:
    """10 s and 20 s were measured, the third was not: 45 s for three."""
    person = make_member(project)
    for task, seconds in zip(make_tasks(project, 3), (10, 20, None), strict=True):
        annotate(task, person, "A", seconds_spent=seconds)
    assert line(compare(project), "manual").people_usd == pytest.approx(0.15)


def test_without_a_wage_or_any_measured_time_what_people_cost_is_unknown(project: Project) -> None:
    person = make_member(project)
    (task,) = make_tasks(project, 1)
    vote = annotate(task, person, "A")
    settle(make_run(project), task, "A")
    settle(make_run(project, Approach.ANSWER_DRIVEN), task, "A", given_from=vote)
    found = compare(project)
    assert costs(line(found, "manual")) == [None, 0, None]
    assert costs(line(found, "answer_driven")) == [None, pytest.approx(0.01), None]
    assert costs(line(found, "automated")) == [0, pytest.approx(0.01), pytest.approx(0.01)]

    Annotation.objects.update(seconds_spent=10)
    assert line(compare(project), "manual").people_usd == pytest.approx(0.1)
    Project.objects.update(hourly_wage=None)
    project.refresh_from_db()
    assert line(compare(project), "manual").people_usd is None


def test_an_answer_that_was_explained_twice_was_given_once(project: Project) -> None:
    """Refused in one run, accepted in the next: the person's 10 s once, both runs' calls."""
    (task,) = make_tasks(project, 1)
    vote = annotate(task, make_member(project), "A", seconds_spent=10)
    settle(make_run(project, Approach.ANSWER_DRIVEN), task, None, given_from=vote, calls=[("0.01", 1)] * 2)
    settle(make_run(project, Approach.ANSWER_DRIVEN), task, "A", given_from=vote)
    explained = line(compare(project), "answer_driven")
    assert (explained.asked, explained.accepted) == (2, 1)
    assert costs(explained) == pytest.approx([0.1, 0.03, 0.13])


def test_nothing_accepted_has_no_price(project: Project) -> None:
    (task,) = make_tasks(project, 1)
    settle(make_run(project), task, None)
    found = line(compare(project), "automated")
    assert (found.asked, found.acceptance, costs(found)) == (1, 0, [None, None, None])


def test_calls_under_way_and_of_unknown_outcome(project: Project) -> None:
    """A task that is still waiting has no part in anything; a call that was never answered is counted, not priced."""
    (task,) = make_tasks(project, 1)
    settled = settle(make_run(project), task, "A")
    Attempt.objects.filter(run_task=settled).update(number=2)
    settled.attempts.create(number=1, request_id="0" * 32, outcome=Attempt.Outcome.UNKNOWN)
    under_way = settle(make_run(project), task, None)
    RunTask.objects.filter(pk=under_way.pk).update(state=RunTask.State.WAITING)
    found = line(compare(project), "automated")
    assert (found.asked, found.accepted, found.unknown_calls) == (1, 1, 1)
    assert found.token_usd == pytest.approx(0.01)


def test_what_a_reviewer_turned_down_is_no_accepted_record(project: Project) -> None:
    reviewer = make_member(project, Membership.Role.REVIEWER)
    tasks = make_tasks(project, 2)
    run = make_run(project)
    said = [settle(run, task, "A", confidence=0.9).annotation for task in tasks]
    review(
        task=tasks[0], annotation=said[0], verdict="rejected", person=reviewer, reason="No.", idempotency_key="1"
    )  # fmt: skip
    found = line(compare(project), "automated")
    assert (found.asked, found.accepted) == (2, 1)
    assert found.token_usd == pytest.approx(0.02)


# Correctness


def test_answers_are_held_against_gold(project: Project) -> None:
    """Gold AC of four candidates, twice. Manual: AC and AC exact, A 0.75. Automated: AC and BD (0). Surplus counts,
    what was withdrawn does not."""
    tasks = make_tasks(project, 3)
    add_gold({tasks[0]: frozenset("AC"), tasks[1]: frozenset("AC")})
    ada, grace = make_member(project), make_member(project)
    annotate(tasks[0], ada, "AC")
    annotate(tasks[0], grace, "A")
    annotate(tasks[1], ada, "AC")
    annotate(tasks[2], ada, "D")
    run = make_run(project)
    settle(run, tasks[0], "AC")
    settle(run, tasks[1], "BD")
    settle(run, tasks[2], "D")

    found = compare(project)
    by_hand, by_model = line(found, "manual").gold, line(found, "automated").gold
    assert (by_hand.answers, by_hand.tasks) == (3, 2)
    assert (by_hand.exact.value, by_hand.credit.value) == pytest.approx((2 / 3, 2.75 / 3))
    assert (by_model.answers, by_model.exact.value, by_model.credit.value) == (2, 0.5, 0.5)
    assert found.measured(Reference.GOLD)


def test_a_copy_of_gold_is_not_held_against_it(project: Project) -> None:
    """Gold that was there when the answer was explained may be what was explained; gold that came later was not."""
    before, after = make_tasks(project, 2)
    add_gold({before: frozenset("A")})
    run = make_run(project, Approach.ANSWER_DRIVEN)
    settle(run, before, "A")
    vote = annotate(after, make_member(project), "B")
    settle(run, after, "B", given_from=vote)
    add_gold({after: frozenset("A")})
    found = line(compare(project, shared=False), "answer_driven")
    assert (found.given_gold, found.gold.answers, found.gold.exact.value) == (1, 1, 0.0)


def test_a_vote_is_not_held_against_what_it_decided(project: Project) -> None:
    """One vote that is the resolution by itself measures nothing; the model is held against it."""
    (task,) = make_tasks(project, 1)
    annotate(task, make_member(project), "A")
    settle(make_run(project), task, "B")
    found = compare(project)
    assert Resolution.objects.get().source == "agreement"
    assert line(found, "manual").others.answers == 0
    assert (line(found, "automated").others.answers, line(found, "automated").others.exact.value) == (1, 0.0)
    assert not found.measured(Reference.GOLD)
    assert found.measured(Reference.OTHERS)


def test_a_vote_is_held_against_what_the_others_agree_on() -> None:
    """Three votes by majority. A A B: each A has A and B for others, which agree on nothing (a tie); B has A, A for
    others and is wrong. A A A: all three right. So 3 of 4."""
    project = make_project(dimensions=[SHADOW], overlap=3, resolution_rule=Project.ResolutionRule.MAJORITY)
    people = [make_member(project) for _ in range(3)]
    for task, answers in zip(make_tasks(project, 2), ("AAB", "AAA"), strict=True):
        for person, answer in zip(people, answers, strict=True):
            annotate(task, person, answer)
    others = line(compare(project), "manual").others
    assert (others.answers, others.tasks, others.exact.value) == (4, 2, 0.75)


def test_a_decision_by_somebody_else_is_what_others_say(project: Project) -> None:
    """A dispute A against B, decided for B by its second voter: only the first is held against that, and is wrong."""
    Project.objects.update(overlap=2)
    project.refresh_from_db()
    (task,) = make_tasks(project, 1)
    ada, grace = make_member(project), make_member(project, Membership.Role.REVIEWER)
    annotate(task, ada, "A")
    annotate(task, grace, "B")
    adjudicate(task=task, answer=frozenset("B"), person=grace, idempotency_key="1")
    settle(make_run(project), task, "B")
    found = compare(project)
    assert (line(found, "manual").others.answers, line(found, "manual").others.exact.value) == (1, 0.0)
    assert line(found, "automated").others.exact.value == 1


def test_a_model_is_not_held_against_its_own_resolution(project: Project) -> None:
    Project.objects.update(model_confidence=0.5)
    (task,) = make_tasks(project, 1)
    settle(make_run(project), task, "A", confidence=0.9)
    assert Resolution.objects.get().source == "model"
    assert line(compare(project), "automated").others.answers == 0


# Texts and times


def test_rationales_are_measured(project: Project) -> None:
    """Lengths 1, 3, 5 words and one record without; two of the three are the same but for case."""
    run = make_run(project)
    for task, text in zip(make_tasks(project, 4), ("Fine.", "b c d e f", "B c d e f!", ""), strict=True):
        settle(run, task, "A", text)
    found = line(compare(project), "automated")
    assert found.words is not None
    assert (found.words.low, found.words.middle, found.words.high) == (3, 5, 5)
    assert (found.texts, found.with_rationale) == (3, 0.75)
    assert found.nearly_the_same == pytest.approx(2 / 3)
    assert (found.variety, found.variety_of) == (None, 0)


def test_a_sample_is_bounded_and_of_all_ages(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotation_server.runs.comparison_samples.SAMPLE", 20)
    person = make_member(project)
    for number, task in enumerate(make_tasks(project, 100)):
        annotate(task, person, "A", rationale="Fine.", seconds_spent=1 if number < 50 else 2)
    assert line(compare(project), "manual").person_seconds == pytest.approx(1.5)  # of all of them
    with chosen_tasks(project, None, ["manual"], shared=False, most=None) as chosen:
        found, again = (sampled(chosen.scope, work_done(chosen))["manual", SHADOW] for _ in range(2))
    assert 15 <= found.records == len(found.texts) <= 20
    assert 5 <= found.person_seconds.count(1) <= 15  # old ones and new ones
    assert found.person_seconds == again.person_seconds


def test_a_sample_is_none_of_how_records_ids_follow_from_tasks_ids(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who works through a queue leaves records with the tasks' ids plus a number."""
    monkeypatch.setattr("annotation_server.runs.comparison_samples.SAMPLE", 10)
    person = make_member(project)
    for task in make_tasks(project, 200):
        annotate(task, person, "A", rationale="Fine.")
    Resolution.objects.update(rationale_from=None)
    found = []
    for _shift in range(20):
        Annotation.objects.update(id=F("id") + 1001)
        with chosen_tasks(project, None, ["manual"], shared=False, most=100) as chosen:
            found.append(sampled(chosen.scope, work_done(chosen))["manual", SHADOW].records)
    assert 5 <= min(found) <= max(found) <= 10


# Which tasks, whose work


def test_imports_and_decisions_are_nobodys_measured_work(project: Project) -> None:
    first, second = make_tasks(project, 2)
    annotate(first, import_annotator("old files"), "A")
    adjudicate(task=second, answer=frozenset("A"), person=make_member(project), idempotency_key="1")
    assert compare(project).tried == []
    assert compare(project).lines == []


def test_one_endpoint_by_itself(project: Project) -> None:
    first, second = make_tasks(project, 2)
    cheap, dear = make_run(project), make_run(project)
    settle(cheap, first, "A", calls=[("0.01", 1)])
    settle(dear, first, "A", calls=[("0.50", 1)])
    settle(dear, second, "A", calls=[("0.50", 1)])
    assert line(compare(project), "automated").token_usd == pytest.approx(1.01 / 3)
    found = compare(project, endpoint=cheap.endpoint)
    assert found.tasks == {SHADOW: 1}
    assert line(found, "automated").token_usd == pytest.approx(0.01)
    assert [endpoint.name for endpoint in found.endpoints] == [cheap.endpoint.name]


def fail_over(project: Project) -> None:
    with chosen_tasks(project, None, ["manual"], shared=True, most=None) as chosen:
        raise ZeroDivisionError(chosen.tasks)


def test_a_comparison_that_fails_is_no_hindrance_to_the_next(project: Project) -> None:
    (task,) = make_tasks(project, 1)
    annotate(task, make_member(project), "A")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail_over(project)
    assert compare(project).tasks == {SHADOW: 1}


def test_another_projects_work_is_not_looked_at(project: Project) -> None:
    other = make_project(dimensions=[SHADOW])
    (task,) = make_tasks(other, 1)
    annotate(task, make_member(other), "A")
    settle(make_run(other), task, "A")
    assert compare(project).tried == []
    assert compare(project, shared=False).lines == []


def test_dimensions_add_up(project: Project) -> None:
    """Shadows 10 s, layout 30 s: 0.10 and 0.30 USD, 0.20 over both."""
    Project.objects.update(dimensions=[SHADOW, "placement_layout"])
    project.refresh_from_db()
    person = make_member(project)
    for dimension, seconds in ((SHADOW, 10), ("placement_layout", 30)):
        (task,) = make_tasks(project, 1, dimension)
        annotate(task, person, "A", seconds_spent=seconds, rationale="Fine.")
    found = compare(project)
    assert found.dimensions == [SHADOW, "placement_layout"]
    assert [line(found, "manual", name).people_usd for name in (*found.dimensions, ALL)] == pytest.approx(
        [0.1, 0.3, 0.2]
    )
    assert line(found, "manual", ALL).texts == 2


@pytest.mark.parametrize("shared", [True, False])
def test_of_very_many_tasks_some_are_drawn(project: Project, shared: bool) -> None:
    """A hundred, twenty with gold; old ones took 10 s, new ones 30 s. Of about 30 drawn the mean is near 20 s."""
    person = make_member(project)
    tasks = make_tasks(project, 100)
    add_gold({task: frozenset("A") for task in tasks[40:60]})
    for number, task in enumerate(tasks):
        annotate(task, person, "A", seconds_spent=10 if number < 50 else 30)
    found = compare(project, shared=shared, most=30)
    assert (found.tasks, found.project_tasks) == ({SHADOW: 100}, {SHADOW: 100})
    assert 20 <= found.looked_at <= 40
    drawn = line(found, "manual")
    assert (drawn.asked, drawn.accepted) == (found.looked_at, found.looked_at)
    assert drawn.person_seconds is not None
    assert 14 < drawn.person_seconds < 26
    assert drawn.gold.tasks == 20  # gold is scarce: none is left out
    assert compare(project, shared=shared, most=30) == found
    for most in (100, None):
        whole = compare(project, shared=shared, most=most)
        assert (whole.looked_at, line(whole, "manual").person_seconds) == (100, 20)


# The mix


@pytest.fixture
def mixed(project: Project) -> Project:
    """Ten gold tasks. People: 10 s each, 9 of 10 right. The model answers 8, at 0.9 five right ones, at 0.5 one right
    and two wrong ones; it is refused on 2. A call costs 0.01 USD, and each task takes one."""
    tasks = make_tasks(project, 10)
    person = make_member(project)
    run = make_run(project)
    add_gold({task: frozenset("A") for task in tasks})
    for place, task in enumerate(tasks):
        annotate(task, person, "B" if place == 9 else "A", seconds_spent=10)
    for place, task in enumerate(tasks):
        if place < 8:
            settle(run, task, "B" if place in (6, 7) else "A", confidence=0.9 if place < 5 else 0.5)
        else:
            settle(run, task, None)
    return project


def test_the_model_first_and_people_for_what_it_leaves(mixed: Project) -> None:
    """People: 0.10 USD, 0.9. The model: 0.10 / 8 = 0.0125 USD, 6 / 8 = 0.75.

    First the model, at 0.9 or more: 5 of 10 stay with it, all right; half goes on: 0.01 + 0.5 · 0.1 = 0.06 USD and
    0.5 · 1 + 0.5 · 0.9 = 0.95. At any confidence: 8 stay, 2 go on: 0.01 + 0.02 = 0.03 USD and 0.8 · 0.75 + 0.2 · 0.9 =
    0.78. So people alone are beaten by half of them.
    """
    found = compare(mixed)
    choice = choose(found, 0.9, Reference.GOLD, Measure.EXACT)
    assert [mix.cost for mix in choice.mixes] == pytest.approx([0.0125, 0.03, 0.06])
    assert [mix.quality for mix in choice.mixes] == pytest.approx([0.75, 0.78, 0.95])
    assert choice.chosen is choice.mixes[2]
    half = choice.mixes[2].choices[SHADOW]
    assert (half.approach, half.then, half.confidence, half.left) == ("automated", "manual", 0.9, 0.5)
    rest = choice.mixes[1].choices[SHADOW]
    assert (rest.then, rest.confidence) == ("manual", None)
    assert rest.left == pytest.approx(0.2)
    assert choose(found, 0.96, Reference.GOLD, Measure.EXACT).chosen is None
    assert choose(found, 0.9, Reference.OTHERS, Measure.EXACT).mixes == []


def test_without_a_wage_only_the_model_can_be_chosen(mixed: Project) -> None:
    Project.objects.update(hourly_wage=None)
    mixed.refresh_from_db()
    (mix,) = choose(compare(mixed), 0.5, Reference.GOLD, Measure.EXACT).mixes
    assert (mix.choices[SHADOW].approach, mix.choices[SHADOW].then) == ("automated", "")


def test_a_copied_answer_is_as_right_as_people_are(mixed: Project) -> None:
    """Where the answer-driven copy gold, what people get right by themselves stands for it."""
    run = make_run(mixed, Approach.ANSWER_DRIVEN)
    for vote in Annotation.objects.filter(approach=Approach.MANUAL):
        settle(run, vote.task, "A", given_from=vote)
    found = compare(mixed)
    assert line(found, "answer_driven").gold.answers == 0
    Annotation.objects.filter(approach=Approach.MANUAL).update(seconds_spent=1)
    # Now 1 s: people 0.01 USD and 0.9; the answer-driven 0.02 USD and the same 0.9, never worth choosing.
    choice = choose(compare(mixed), 0.9, Reference.GOLD, Measure.EXACT)
    assert all(option.approach != "answer_driven" for mix in choice.mixes for option in mix.choices.values())
    assert choice.mixes[0].choices[SHADOW].approach == "manual"
