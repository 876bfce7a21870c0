"""What the annotating page asks of the server: its shell, claims that renew themselves, answers, drafts, undo.

Not here: what the page does with it (tests/browser/test_annotate_in_browser.py).
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation
from annotation_server.projects.models import Project
from annotation_server.tasks.models import Slot, Task
from annotation_server.tasks.services import claim_next
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    """Three samples, one dimension, one vote each."""
    project = make_project(dimensions=["physical_shadow"], guidelines="Look at the light first.")
    for _ in range(3):
        make_sample(project)
    return project


@pytest.fixture
def annotator(project: Project, client: Client) -> Person:
    """Signed in."""
    person = make_member(project)
    client.force_login(person)
    return person


def post(client: Client, project: Project, address: str, sent: object = None) -> Any:
    return client.post(f"/api/v1/projects/{project.slug}/{address}", json.dumps(sent or {}), "application/json")


def claims(client: Client, project: Project, count: int = 2) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = post(client, project, "claims", {"count": count}).json()["claims"]
    return found


def submit(client: Client, project: Project, claim: dict[str, Any], **sent: Any) -> HttpResponse:
    body = {"answer": ["A"], "idempotency_key": str(uuid.uuid4())} | sent
    answered: HttpResponse = post(client, project, f"tasks/{claim['task']['id']}/annotations", body)
    return answered


def test_the_shell_knows_what_its_script_needs(client: Client, project: Project, annotator: Person) -> None:
    page = client.get(f"/projects/{project.slug}/annotate").content.decode()
    (found,) = re.findall(r'<script id="setup" type="application/json">(.*?)</script>', page)
    setup = json.loads(found)
    assert (setup["project"], setup["username"]) == (project.slug, annotator.username)
    guidelines = client.get(setup["dimensions"]["physical_shadow"]["guidelines"]).content.decode()
    assert "Look at the light first." in guidelines
    assert list(setup["dimensions"]) == ["physical_shadow"]
    assert setup["images"].endswith("0" * 64)


def test_opening_the_page_claims_nothing(client: Client, project: Project, annotator: Person) -> None:
    client.get(f"/projects/{project.slug}/annotate")
    assert not Slot.objects.exclude(state="open").exists()


def test_claims_are_held_and_filled_up(client: Client, project: Project, annotator: Person) -> None:
    first = claims(client, project, 2)
    assert len(first) == 2
    assert submit(client, project, first[0], answer=["A", "C"], rationale=" Both are fine. ").status_code == 201
    second = claims(client, project, 2)
    last = Task.objects.order_by("pk").values_list("pk", flat=True).last()
    assert [claim["task"]["id"] for claim in second] == [first[1]["task"]["id"], last]
    said = Annotation.objects.get()
    assert (said.answer, said.rationale, said.standing) == (frozenset("AC"), "Both are fine.", "vote")


def test_an_answer_may_bring_the_next_tasks(client: Client, project: Project, annotator: Person) -> None:
    held = claims(client, project, 2)
    said = submit(client, project, held[0], hold=2).json()  # type: ignore[attr-defined]
    last = Task.objects.order_by("pk").values_list("pk", flat=True).last()
    assert [claim["task"]["id"] for claim in said["next"]["claims"]] == [held[1]["task"]["id"], last]
    assert submit(client, project, held[1]).json()["next"] is None  # type: ignore[attr-defined]


def test_asking_again_is_the_heartbeat(client: Client, project: Project, annotator: Person) -> None:
    (before,) = claims(client, project, 1)
    Slot.objects.filter(state="claimed").update(lease_expires_at=timezone.now() + timedelta(seconds=1))
    (after,) = claims(client, project, 1)
    assert after["lease_token"] == before["lease_token"]
    assert Slot.objects.filter(lease_expires_at__gt=timezone.now() + timedelta(seconds=100)).count() == 1


def test_a_lease_that_went_to_somebody_else_is_gone_from_the_answer(
    client: Client, project: Project, annotator: Person
) -> None:
    (mine,) = claims(client, project, 1)
    Slot.objects.filter(state="claimed").update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    taken = claim_next(project, make_member(project))
    assert taken is not None
    assert taken.task.pk == mine["task"]["id"]
    assert mine["lease_token"] not in {claim["lease_token"] for claim in claims(client, project, 2)}


def test_leaving_gives_back_what_the_page_held(client: Client, project: Project, annotator: Person) -> None:
    held = [claim["lease_token"] for claim in claims(client, project, 3)]
    assert post(client, project, "claims/release", {"lease_tokens": held[:2]}).json() == {"released": True}
    assert [str(slot.lease_token) for slot in Slot.objects.filter(state="claimed")] == held[2:]
    assert post(client, project, "claims/release", {"lease_tokens": held[:2]}).json() == {"released": False}


def test_a_project_may_want_a_rationale(client: Client, project: Project, annotator: Person) -> None:
    Project.objects.update(rationale_required=True)
    (claim,) = claims(client, project, 1)
    refused = submit(client, project, claim)
    assert refused.status_code == 422
    assert "rationale" in refused.content.decode()
    assert not Annotation.objects.exists()


def test_sending_an_answer_twice_keeps_one_annotation(client: Client, project: Project, annotator: Person) -> None:
    (claim,) = claims(client, project, 1)
    for _ in range(2):
        assert submit(client, project, claim, idempotency_key="one").status_code == 201
    assert Annotation.objects.count() == 1


def test_answering_a_task_a_second_time_is_a_conflict(client: Client, project: Project, annotator: Person) -> None:
    (claim,) = claims(client, project, 1)
    submit(client, project, claim)
    again = submit(client, project, claim, answer=["B"])
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_answered")  # type: ignore[attr-defined]
    assert Annotation.objects.get().answer == frozenset("A")


def test_a_late_answer_is_surplus_and_says_so(client: Client, project: Project, annotator: Person) -> None:
    (claim,) = claims(client, project, 1)
    Slot.objects.filter(state="claimed").update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    faster = make_member(project)
    taken = claim_next(project, faster)
    assert taken is not None
    annotate(taken.task, faster, "B")
    assert submit(client, project, claim).json()["standing"] == "surplus"  # type: ignore[attr-defined]


def test_an_empty_queue_says_why(client: Client) -> None:
    project = make_project(dimensions=["physical_shadow"])
    client.force_login(make_member(project))
    said = post(client, project, "claims").json()
    assert (said["claims"], said["left"]) == ([], {"tasks": 0, "held_by_others": 0, "answered_by_me": 0})
    make_sample(project)
    claim_next(project, make_member(project))
    assert post(client, project, "claims").json()["left"]["held_by_others"] == 1


def test_a_task_of_another_project_is_not_answered_here(client: Client, project: Project, annotator: Person) -> None:
    elsewhere = make_task()
    sent = {"answer": ["A"], "idempotency_key": "k"}
    assert post(client, project, f"tasks/{elsewhere.pk}/annotations", sent).status_code == 404


def test_an_undone_answer_comes_back_as_a_draft(client: Client, project: Project, annotator: Person) -> None:
    (claim,) = claims(client, project, 1)
    said = submit(client, project, claim, answer=["B"], rationale="B stands.").json()  # type: ignore[attr-defined]
    back = post(client, project, f"annotations/{said['id']}/withdraw").json()
    assert back["task"]["id"] == claim["task"]["id"]
    assert (back["draft"]["answer"], back["draft"]["rationale"]) == (["B"], "B stands.")
    again = post(client, project, f"annotations/{said['id']}/withdraw")
    assert again.status_code == 404


def test_candidates_may_be_shown_in_an_order_of_ones_own(client: Client, annotator: Person, project: Project) -> None:
    Project.objects.update(shuffle_candidates=True)
    orders = set()
    for _ in range(6):
        client.force_login(make_member(project))
        (claim,) = claims(client, project, 1)
        (again,) = claims(client, project, 1)
        assert claim["images"] == again["images"]
        assert claim["images"][0]["letter"] == ""
        assert sorted(image["letter"] for image in claim["images"][1:]) == list("ABCD")
        by_letter = {image["letter"]: image["sha256"] for image in claim["images"]}
        sample = Task.objects.get(pk=claim["task"]["id"]).sample
        assert all(by_letter[one.letter] == one.image.sha256 for one in sample.candidates.all())
        orders.add("".join(image["letter"] for image in claim["images"]))
        post(client, project, "claims/release", {"lease_tokens": [claim["lease_token"]]})
    assert len(orders) > 1

    submit(client, project, claims(client, project, 1)[0], shown_order="DBAC")
    assert Annotation.objects.get().meta == {"shown_order": "DBAC"}
