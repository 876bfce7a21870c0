"""Nobody sees another's answer, the gold or a model's output on a task before submitting: not on pages, not by API.

Every address a member can open is searched for words that only hidden answers contain.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from django.test import Client

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotator, Approach
from annotation_server.annotations.services import add_gold, model_annotator
from annotation_server.projects.models import Membership, Project
from annotation_server.runs.models import Attempt, Run, RunChunk, RunTask
from annotation_server.runs.services import create_endpoint
from annotation_server.tasks.models import Task
from annotation_server.tasks.services import claim_next
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db

OTHERS = "what-another-person-saw"
MODELS = "what-a-model-saw"
REFUSED = "what-a-refused-completion-said"
META = "what-the-generator-knows"


@dataclass
class Story:
    """Two votes wanted: one is in, one is open. A model has spoken, gold is known."""

    project: Project
    task: Task
    run: Run
    manager: Person
    annotator: Person
    engineer: Person


@pytest.fixture
def story() -> Story:
    project = make_project(dimensions=["physical_shadow"], overlap=2)
    _, (task,) = make_sample(project, meta={"defects": META})
    annotate(task, make_member(project), "B", rationale=OTHERS)
    endpoint = create_endpoint(name="local", base_url="http://127.0.0.1:9/v1", model="m", caveat="Drawn scenes only.")
    annotate(task, model_annotator("local"), "C", rationale=MODELS, approach=Approach.AUTOMATED)
    add_gold({task: frozenset("BD")})
    run = Run.objects.create(project=project, endpoint=endpoint, approach="automated", prompt_version="ask-1")
    chunk = RunChunk.objects.create(run=run, ordinal=0, tasks=1)
    run_task = RunTask.objects.create(run=run, chunk=chunk, task=task)
    Attempt.objects.create(
        run_task=run_task,
        number=1,
        request_id="00000000-0000-0000-0000-000000000001",
        outcome="rejected",
        reason="several_answers",
        detail=REFUSED,
    )
    return Story(
        project=project,
        task=task,
        run=run,
        manager=make_member(project, Membership.Role.MANAGER),
        annotator=make_member(project, Membership.Role.ANNOTATOR),
        engineer=make_member(project, Membership.Role.ML_ENGINEER),
    )


def everything(client: Client, story: Story, person: Person) -> str:
    """All that the person can get to read about the task."""
    client.force_login(person)
    root = f"/projects/{story.project.slug}"
    pages = [
        f"{root}/",
        f"{root}/annotate",
        f"{root}/tasks",
        f"{root}/tasks?state=resolved",
        f"{root}/tasks?approach=automated",
        f"{root}/tasks.csv",
        f"{root}/tasks/{story.task.pk}",
        f"{root}/review?kind=resolved&share=100",
        f"{root}/review?kind=models&confidence=1",
        f"{root}/agreement?dimension=physical_shadow",
        f"{root}/agreement.csv",
        f"{root}/disputed",
        f"{root}/disputed/{story.task.pk}",
        f"{root}/runs",
        f"{root}/runs/{story.run.pk}",
        f"{root}/runs/{story.run.pk}/attempts",
        f"/api/v1{root}/tasks",
        f"/api/v1{root}/tasks/{story.task.pk}",
        f"/api/v1{root}/disputed",
        f"/api/v1{root}/runs/{story.run.pk}",
        f"/api/v1{root}/progress",
    ]
    return "\n".join(client.get(page).getvalue().decode() for page in pages)


def test_before_submitting_nobody_reads_what_others_said(client: Client, story: Story) -> None:
    for person in (story.annotator, story.manager):
        seen = everything(client, story, person)
        for hidden in (OTHERS, MODELS, REFUSED, META, "Gold"):
            assert hidden not in seen, (person, hidden)


def test_before_submitting_a_task_with_gold_looks_like_any_other(client: Client, story: Story) -> None:
    """Gold resolves a task at once; who may still vote must not notice."""
    assert Task.objects.get(pk=story.task.pk).state == "resolved"
    client.force_login(story.manager)
    listed = client.get(f"/api/v1/projects/{story.project.slug}/tasks").json()["tasks"]
    assert [task["state"] for task in listed] == ["open"]
    filtered = client.get(f"/api/v1/projects/{story.project.slug}/tasks?state=resolved").json()["tasks"]
    assert filtered == []
    detail = client.get(f"/api/v1/projects/{story.project.slug}/tasks/{story.task.pk}").json()
    assert (detail["state"], detail["annotations"], detail["resolution"]) == ("open", [], None)


def claimed(client: Client, story: Story) -> dict[str, Any]:
    """The story's task as its annotator claims it: gold comes mixed in with what else is to be done."""
    make_sample(story.project, meta={"defects": META})
    Project.objects.update(gold_rate=0.5)
    claims = client.post(f"/api/v1/projects/{story.project.slug}/claims", {"count": 2}, "application/json").json()
    found: dict[str, Any] = next(claim for claim in claims["claims"] if claim["task"]["id"] == story.task.pk)
    return found


def test_a_claim_by_api_carries_nothing_but_the_question(client: Client, story: Story) -> None:
    client.force_login(story.annotator)
    said = claimed(client, story)
    assert said["pre_annotations"] == []
    assert set(said["task"]) == {"id", "sample", "dimension", "candidate_count", "state"}
    for hidden in (OTHERS, MODELS, META):
        assert hidden not in json.dumps(said)


def test_after_submitting_a_manager_reads_all_of_it_and_an_annotator_their_own(client: Client, story: Story) -> None:
    annotate(story.task, story.manager, "BD", rationale="my own words")

    seen = everything(client, story, story.manager)
    assert all(shown in seen for shown in (OTHERS, MODELS, REFUSED, "my own words", "Gold"))
    assert META not in seen

    seen = everything(client, story, story.annotator)
    assert not any(hidden in seen for hidden in (OTHERS, MODELS, REFUSED, "my own words", "Gold"))


def test_an_annotator_reads_their_own_answer_again(client: Client, story: Story) -> None:
    annotate(story.task, story.annotator, "A", rationale="my own words")
    seen = everything(client, story, story.annotator)
    assert "my own words" in seen
    assert not any(hidden in seen for hidden in (OTHERS, MODELS, REFUSED, "Gold"))


def test_who_never_votes_has_nothing_to_be_blind_to(client: Client, story: Story) -> None:
    seen = everything(client, story, story.engineer)
    assert all(shown in seen for shown in (OTHERS, MODELS, REFUSED, "Drawn scenes only."))


def test_holding_a_task_without_answering_it_shows_nothing(client: Client, story: Story) -> None:
    claim_next(story.project, story.manager)
    assert OTHERS not in everything(client, story, story.manager)


def test_nobody_decides_a_task_they_may_still_vote_on(client: Client, story: Story) -> None:
    client.force_login(story.manager)
    decision = {"letters": "A", "idempotency_key": "k"}
    assert client.get(f"/projects/{story.project.slug}/disputed/{story.task.pk}").status_code == 403
    assert client.post(f"/projects/{story.project.slug}/disputed/{story.task.pk}", decision).status_code == 403


def test_a_project_may_show_what_models_said(client: Client, story: Story) -> None:
    Project.objects.update(show_pre_annotations=True)
    client.force_login(story.annotator)

    (said,) = claimed(client, story)["pre_annotations"]

    assert (said["rationale"], said["caveat"]) == (MODELS, "Drawn scenes only.")
    assert Annotator.objects.filter(kind="model").count() == 1
