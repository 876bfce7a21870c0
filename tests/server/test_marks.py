"""Marks on candidates: checked, kept with the annotation, and in the meta of the record that is frozen."""

from __future__ import annotations

from typing import Any

import pytest

from annotation_server.annotations.decisions import review
from annotation_server.annotations.marks import MAX_MARKS, clean_marks
from annotation_server.annotations.models import Annotation
from annotation_server.annotations.services import AnnotationRefused
from annotation_server.datasets.freeze import Tally, one_view, records_in_order
from annotation_server.datasets.services import start_freeze
from annotation_server.datasets.splits import assign_sides
from annotation_server.projects.models import Membership, Project
from tests.server.factories import annotate, make_member, make_project, make_task

pytestmark = pytest.mark.django_db

POINT = {"letter": "B", "x": 0.5, "y": 0.25}
BOX = {"letter": "D", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.4, "note": "a seam"}


def frozen_meta(project: Project) -> dict[str, Any]:
    """The meta of the only record that a version would hold now."""
    version = start_freeze(project=project, name="v", person=None)
    assign_sides(project)
    with one_view():
        ((record, _),) = records_in_order(version, Tally())
    return dict(record.meta)


def test_it_works() -> None:
    project = make_project()
    said = annotate(make_task(project), make_member(project), "A", rationale="B and D fail.", marks=[POINT, BOX])
    assert Annotation.objects.get(pk=said.pk).marks == [POINT, BOX]
    assert frozen_meta(project)["marks"] == [POINT, BOX]


def test_a_record_without_marks_has_none_in_its_meta() -> None:
    project = make_project()
    annotate(make_task(project), make_member(project), "A", rationale="B fails.")
    assert "marks" not in frozen_meta(project)


def test_marks_follow_the_rationale_that_stands() -> None:
    project = make_project()
    task = make_task(project)
    reviewer = make_member(project, Membership.Role.REVIEWER)
    annotate(task, make_member(project), "A", rationale="B fails.", marks=[POINT])
    review(
        task=task,
        annotation=None,
        verdict="corrected",
        person=reviewer,
        answer=frozenset("A"),
        rationale="B fails: its shadow is missing.",
        idempotency_key="k",
    )
    assert frozen_meta(project)["marks"] == [POINT]  # only the words were edited


def test_numbers_are_rounded_and_unknown_keys_dropped() -> None:
    given = {"letter": "A", "x": 1 / 3, "y": 1, "note": "  why  ", "colour": "red"}
    assert clean_marks([given], 4) == [{"letter": "A", "x": 0.3333, "y": 1.0, "note": "why"}]


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"letter": "E", "x": 0, "y": 0}, "mark 1: letter 'E': expected one of A, B, C, D"),
        ({"letter": "", "x": 0, "y": 0}, "letter ''"),
        ({"x": 0, "y": 0}, "letter None"),
        ({"letter": "A", "x": 1.5, "y": 0}, "x is 1.5"),
        ({"letter": "A", "x": True, "y": 0}, "x is True"),
        ({"letter": "A", "x": "0.5", "y": 0}, "x is '0.5'"),
        ({"letter": "A", "x": float("nan"), "y": 0}, "x is nan"),
        ({"letter": "A", "x": 0, "y": 0, "w": 0.5}, "h is None"),
    ],
)
def test_a_mark_that_is_none_is_named(mark: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        clean_marks([mark], 4)


def test_an_annotation_with_such_a_mark_is_refused() -> None:
    task = make_task()
    with pytest.raises(AnnotationRefused, match="mark 1"):
        annotate(task, make_member(task.project), "A", marks=[{"letter": "E", "x": 0, "y": 0}])
    with pytest.raises(AnnotationRefused, match=f"at most {MAX_MARKS}"):
        annotate(task, make_member(task.project), "A", marks=[POINT] * (MAX_MARKS + 1))
    assert not Annotation.objects.exists()
