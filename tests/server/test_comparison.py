"""What the three approaches cost, achieve and are like: small projects with the figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from annotation_server.annotations.models import Approach
from annotation_server.projects.models import Project
from annotation_server.runs.comparison import ALL, Comparison, Line, compare
from annotation_server.tasks.models import Task
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
