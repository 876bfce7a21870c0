"""The counts of a run's checks on its page, in the API and of the command; the settings that they follow."""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from annotation_server.projects.models import Membership, Project
from annotation_server.runs.management.commands.annotate import Command
from annotation_server.runs.models import Attempt, Run, RunChunk, RunTask
from annotation_server.runs.selectors import check_counts, refusals
from annotation_server.runs.services import create_endpoint
from annotation_server.runs.wording import CHECK_LABELS
from tests.server.factories import make_member, make_project, make_sample
from trainer.contract.feedback import Objection

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(slug="bottles")


@pytest.fixture
def manager(client: Client, project: Project) -> Client:
    client.force_login(make_member(project, Membership.Role.MANAGER))
    return client


def make_run(project: Project, approach: str, *reasons: str) -> Run:
    """A run of one task, each of whose attempts was refused for a reason."""
    endpoint = create_endpoint(name=f"e{Run.objects.count()}", base_url="http://127.0.0.1:9/v1", model="m")
    run = Run.objects.create(project=project, endpoint=endpoint, approach=approach, prompt_version="p", state="done")
    chunk = RunChunk.objects.create(run=run, ordinal=0, tasks=1)
    run_task = RunTask.objects.create(run=run, chunk=chunk, task=make_sample(project)[1][0])
    for number, reason in enumerate(reasons, start=1):
        outcome = "rejected" if reason in set(Objection) else "error"
        Attempt.objects.create(
            run_task=run_task, number=number, request_id=uuid.uuid4(), outcome=outcome, reason=reason
        )
    chunk.refusals = dict(Counter(reasons))
    chunk.save()
    return run


def test_every_check_has_its_count_and_its_words_on_the_page_and_in_the_api(manager: Client, project: Project) -> None:
    run = make_run(project, "answer_driven", "leaks", "leaks", "near_copy", "not_json")
    page = manager.get(f"/projects/bottles/runs/{run.pk}").content.decode()
    for objection in Objection:
        times = {"leaks": 2, "near_copy": 1}.get(objection.value, 0)
        assert f'<code>{objection}</code></td><td>{CHECK_LABELS[objection]}</td><td class="number">{times}</td>' in page
    assert '<code>not_json</code></td><td class="number">1</td>' in page

    told = manager.get(f"/api/v1/projects/bottles/runs/{run.pk}").json()
    assert told["checks"] == dict.fromkeys(Objection, 0) | {"leaks": 2, "near_copy": 1}
    assert list(told["checks"]) == [objection.value for objection in Objection]
    assert told["refusals"] == {"leaks": 2, "near_copy": 1, "not_json": 1}


def test_an_automated_run_lists_the_checks_that_it_meets(project: Project) -> None:
    run = make_run(project, "automated", "too_short")
    counts = {count.objection.value: count.times for count in check_counts(run, refusals(run))}
    assert counts == {"too_long": 0, "too_short": 1, "empty_talk": 0, "contradicts": 0, "near_copy": 0}


def test_the_command_says_them_too(project: Project) -> None:
    command = Command(stdout=io.StringIO())
    command._report(make_run(project, "automated", "too_short", "not_json"))
    said = command.stdout.getvalue()
    assert "  checks: too_long 0, too_short 1, empty_talk 0, contradicts 0, near_copy 0\n  not_json: 1\n" in said


def test_a_projects_limits_are_set_through_the_api_and_null_means_none(manager: Client, project: Project) -> None:
    told = manager.get("/api/v1/projects/bottles").json()
    limits = ("rationale_min_words", "rationale_max_words", "near_copy", "blind_resolve")
    assert [told[name] for name in limits] == [8, 600, 0.8, False]
    wanted = {"rationale_min_words": 0, "rationale_max_words": None, "near_copy": None, "blind_resolve": True}
    body = json.dumps({"slug": "jars", "name": "Jars"} | wanted)
    made = manager.post("/api/v1/projects", body, content_type="application/json")
    assert made.status_code == 201, made.content
    assert {name: made.json()[name] for name in limits} == wanted
    refused = manager.post(
        "/api/v1/projects", body.replace("jars", "cans").replace('"near_copy": null', '"near_copy": 2'),
        content_type="application/json",
    )  # fmt: skip
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "near_copy")


def test_the_demo_allows_near_copies(settings: Any) -> None:
    settings.DEMO, settings.MODEL = True, "none"
    call_command("ensure_demo", samples=1, size=64, stdout=io.StringIO())
    assert Project.objects.get(slug="demo").near_copy is None
