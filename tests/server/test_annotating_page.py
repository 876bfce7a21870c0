"""The annotating page as a plain form and as htmx uses it: claim, answer, next, and each way it can go wrong."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation
from annotation_server.projects.models import Project
from annotation_server.tasks.models import Slot, Task
from annotation_server.tasks.services import claim_next
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def project() -> Project:
    """Two samples, one dimension, one vote each."""
    project = make_project(dimensions=["physical_shadow"], guidelines="Look at the light first.")
    make_sample(project)
    make_sample(project)
    return project


@pytest.fixture
def annotator(project: Project, client: Client) -> Person:
    """Signed in."""
    person = make_member(project)
    client.force_login(person)
    return person


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of the page's form, as a browser would send them back."""
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    return {name: value for name, value in fields.items() if name != "csrfmiddlewaretoken"}


def shown_task(page: str) -> int:
    (address,) = re.findall(r'action="/projects/[\w-]+/annotate/(\d+)"', page)
    return int(address)


def test_it_works(client: Client, project: Project, annotator: Person) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()
    task_id = shown_task(page)
    assert "Look at the light first." in page
    assert page.count("<img ") == 5

    sent = hidden(page) | {"letters": ["A", "C"], "rationale": " Both are fine. ", "seconds_spent": "12.5"}
    answered = client.post(f"{address}/{task_id}", sent)

    assert (answered.status_code, answered["Location"]) == (302, address)
    annotation = Annotation.objects.get()
    assert annotation.answer == frozenset("AC")
    assert (annotation.rationale, annotation.seconds_spent) == ("Both are fine.", 12.5)
    assert (annotation.standing, annotation.annotator.person) == ("vote", annotator)
    assert Task.objects.get(pk=task_id).state == "resolved"
    assert shown_task(client.get(address).content.decode()) != task_id


def test_htmx_gets_the_next_task_as_a_fragment(client: Client, project: Project, annotator: Person) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()

    answered = client.post(f"{address}/{shown_task(page)}", hidden(page) | {"none": "on"}, headers=HTMX)

    fragment = answered.content.decode()
    assert answered.status_code == 200
    assert "<html" not in fragment
    assert shown_task(fragment) != shown_task(page)
    assert Annotation.objects.get().answer == frozenset()


def test_reloading_shows_the_same_task(client: Client, project: Project, annotator: Person) -> None:
    address = f"/projects/{project.slug}/annotate"
    assert shown_task(client.get(address).content.decode()) == shown_task(client.get(address).content.decode())


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"rationale": "typed <text>"}, "Choose one or more candidates"),
        ({"rationale": "typed <text>", "letters": ["A"], "none": "on"}, "exclude each other"),
        ({"rationale": "typed <text>", "letters": ["G"]}, "G is not one of the available choices"),
    ],
)
@pytest.mark.parametrize("headers", [{}, HTMX])
def test_a_refused_answer_keeps_what_was_typed(
    client: Client,
    project: Project,
    annotator: Person,
    sent: dict[str, object],
    said: str,
    headers: dict[str, str],
) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()

    refused = client.post(f"{address}/{shown_task(page)}", hidden(page) | sent, headers=headers)

    again = refused.content.decode()
    assert refused.status_code == 422
    assert said in again
    assert "typed &lt;text&gt;" in again
    assert hidden(again) == hidden(page)  # the same task, lease and key
    assert shown_task(again) == shown_task(page)
    assert ("<html" in again) == (not headers)
    assert not Annotation.objects.exists()


def test_a_project_may_want_a_rationale(client: Client, project: Project, annotator: Person) -> None:
    Project.objects.update(rationale_required=True)
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()
    refused = client.post(f"{address}/{shown_task(page)}", hidden(page) | {"letters": "A", "rationale": "  "})
    assert refused.status_code == 422
    assert "wants a rationale" in refused.content.decode()


def test_a_form_without_its_hidden_fields_is_refused(client: Client, project: Project, annotator: Person) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()
    refused = client.post(f"{address}/{shown_task(page)}", {"letters": "A"})
    assert refused.status_code == 422
    assert "reload it" in refused.content.decode()


def test_sending_a_form_twice_keeps_one_annotation(client: Client, project: Project, annotator: Person) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()
    sent = hidden(page) | {"letters": "A"}
    for _ in range(2):
        assert client.post(f"{address}/{shown_task(page)}", sent).status_code == 302
    assert Annotation.objects.count() == 1


def test_answering_a_task_a_second_time_leaves_the_first_answer(
    client: Client, project: Project, annotator: Person
) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()
    sent = hidden(page) | {"letters": "A"}
    client.post(f"{address}/{shown_task(page)}", sent)
    again = client.post(
        f"{address}/{shown_task(page)}", sent | {"letters": "B", "idempotency_key": "another"}, follow=True
    )
    assert "your first answer stands" in again.content.decode()
    assert Annotation.objects.get().answer == frozenset("A")


def test_a_lost_lease_makes_a_surplus_and_says_so(client: Client, project: Project, annotator: Person) -> None:
    address = f"/projects/{project.slug}/annotate"
    page = client.get(address).content.decode()
    Slot.objects.filter(state="claimed").update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    faster = make_member(project)
    claimed = claim_next(project, faster)
    assert claimed is not None
    annotate(claimed.task, faster, "B", lease_token=claimed.lease_token)

    late = client.post(f"{address}/{shown_task(page)}", hidden(page) | {"letters": "A"}, headers=HTMX)

    assert "kept as surplus and does not count" in late.content.decode()
    assert Annotation.objects.get(annotator__person=annotator).standing == "surplus"
    assert Task.objects.get(pk=shown_task(page)).resolution.answer == frozenset("B")


def test_the_heartbeat_keeps_the_lease_and_hears_when_it_is_lost(
    client: Client, project: Project, annotator: Person
) -> None:
    page = client.get(f"/projects/{project.slug}/annotate").content.decode()
    lease = {"lease_token": hidden(page)["lease_token"]}
    slot = Slot.objects.get(state="claimed")
    soon = timezone.now() + timedelta(seconds=5)
    Slot.objects.update(lease_expires_at=soon)

    assert client.post(f"/leases/{slot.pk}/extend", lease).status_code == 204
    slot.refresh_from_db()
    assert slot.lease_expires_at is not None
    assert slot.lease_expires_at > soon

    assert client.post(f"/leases/{slot.pk}/release", lease).status_code == 204
    slot.refresh_from_db()
    assert (slot.state, slot.person) == ("open", None)
    assert client.post(f"/leases/{slot.pk}/extend", lease).status_code == 409
    assert client.post(f"/leases/{slot.pk}/extend", {"lease_token": "nonsense"}).status_code == 409


def test_an_empty_queue_says_why(client: Client) -> None:
    project = make_project(dimensions=["physical_shadow"])
    first, second = make_member(project), make_member(project)
    address = f"/projects/{project.slug}/annotate"
    client.force_login(first)
    assert "There is nothing to annotate yet." in client.get(address).content.decode()

    _, tasks = make_sample(project)
    claim_next(project, second)
    assert "Nothing is free right now." in client.get(address).content.decode()

    annotate(tasks[0], second, "A")
    assert "All done" in client.get(address).content.decode()


def test_a_task_of_another_project_is_not_answered_here(client: Client, project: Project, annotator: Person) -> None:
    _, tasks = make_sample(make_project())
    page = client.get(f"/projects/{project.slug}/annotate").content.decode()
    response = client.post(f"/projects/{project.slug}/annotate/{tasks[0].pk}", hidden(page) | {"letters": "A"})
    assert response.status_code == 404
    assert not Annotation.objects.exists()
