"""Judging through the API, with the typed client over real HTTP, as the demo's scripted person does."""

from __future__ import annotations

import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import create_token
from annotation_server.annotations.models import Annotation, Resolution
from annotation_server.client import ApiRefused, Client, TookTooLong
from annotation_server.datasets.models import DatasetVersion
from annotation_server.datasets.services import freeze_version
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Membership, Project
from annotation_server.runs.models import RequestBatch, Run, RunChunk
from annotation_server.runs.services import create_endpoint
from annotation_server.samples import storage
from tests.server.factories import annotate, make_member, make_project, make_sample, prepare

pytestmark = pytest.mark.django_db(transaction=True)

SLUG = "bottles"


@pytest.fixture
def project() -> Project:
    return make_project(slug=SLUG, dimensions=["physical_shadow"], overlap=2)


def client_of(person: Person, live_server: Any) -> Client:
    _, secret = create_token(person=person, name="test")
    return Client(live_server.url, secret)


@pytest.fixture
def manager(project: Project, live_server: Any) -> Any:
    with client_of(make_member(project, Membership.Role.MANAGER, "manager"), live_server) as client:
        yield client


@pytest.fixture
def annotator(project: Project, live_server: Any) -> Any:
    with client_of(make_member(project, username="annotator"), live_server) as client:
        yield client


def test_it_works(project: Project, annotator: Client, manager: Client) -> None:
    """Claim, look, answer, disagree, decide, and see it resolved."""
    sample, _ = make_sample(project)
    storage.put(sample.original.path, b"pixels")

    claimed = annotator.next_task(SLUG)
    assert claimed is not None
    assert [image.letter for image in claimed.images] == ["", "A", "B", "C", "D"]
    assert annotator.image(claimed.images[0].sha256) == b"pixels"
    assert annotator.heartbeat(claimed)
    said = annotator.submit(SLUG, claimed, {"C", "A"}, "Both touch their shadows.", seconds_spent=3.5)
    assert (said["standing"], said["answer"], said["annotator"]) == ("vote", ["A", "C"], "annotator")
    assert annotator.next_task(SLUG) is None

    again = manager.next_task(SLUG)
    assert again is not None
    assert again.task_id == claimed.task_id
    manager.submit(SLUG, again, {"A"})

    (disputed,) = manager.disputed(SLUG)
    assert {row["annotator"] for row in disputed["annotations"]} == {"annotator", "manager"}
    manager.decide(SLUG, claimed.task_id, {"A"}, "C floats.")
    assert manager.disputed(SLUG) == []
    assert manager.task(SLUG, claimed.task_id)["resolution"]["source"] == "adjudication"
    assert annotator.task(SLUG, claimed.task_id)["resolution"] is None
    assert manager.progress(SLUG)[0]["resolved"] == 1
    assert manager.tasks(SLUG, state="resolved")["next_after"] is None
    assert Resolution.objects.get().answer == frozenset("A")


def test_submitting_twice_keeps_one_annotation(project: Project, annotator: Client) -> None:
    make_sample(project)
    claimed = annotator.next_task(SLUG)
    assert claimed is not None
    first = annotator.submit(SLUG, claimed, {"A"})
    assert annotator.submit(SLUG, claimed, {"A"}) == first
    assert Annotation.objects.count() == 1
    with pytest.raises(ApiRefused) as refused:
        annotator.submit(SLUG, claimed, {"B"}, idempotency_key="another")
    assert (refused.value.status, refused.value.code) == (409, "already_answered")


def test_a_task_is_undone_skipped_and_reviewed(project: Project, annotator: Client, manager: Client) -> None:
    project.overlap = 1
    project.save()
    make_sample(project)
    make_sample(project)
    claimed = annotator.next_task(project.slug)
    assert claimed is not None
    said = annotator.submit(project.slug, claimed, ["A"], "A stands.")
    again = annotator.withdraw(project.slug, said["id"])
    assert again.task_id == claimed.task_id
    annotator.submit(project.slug, again, ["B"], idempotency_key="second")
    with pytest.raises(ApiRefused, match="reason: Input should be 'unclear'"):
        annotator.flag(project.slug, claimed.task_id, "boring")
    skipped = annotator.next_task(project.slug)
    assert skipped is not None
    annotator.flag(project.slug, skipped.task_id, "unclear", skip=True)
    assert (following := annotator.next_task(project.slug)) is None or following.task_id != skipped.task_id

    reviewed = manager.review(
        project.slug, claimed.task_id, "corrected", answer=["C"], rationale="C, look at the foot."
    )
    assert reviewed["verdict"] == "corrected"
    assert manager.task(project.slug, claimed.task_id)["resolution"]["answer"] == ["C"]


def test_a_released_task_goes_back_and_its_lease_is_lost(project: Project, annotator: Client, manager: Client) -> None:
    make_sample(project)
    claimed = annotator.next_task(SLUG)
    assert claimed is not None
    assert annotator.release(claimed)
    assert not annotator.release(claimed)
    assert not annotator.heartbeat(claimed)


def test_the_keyset_walks_every_task_once(project: Project, manager: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotation_server.annotations.selectors.PAGE_ROWS", 2)
    monkeypatch.setattr("annotation_server.annotations.api.PAGE_ROWS", 2)
    wanted = [make_sample(project)[1][0].pk for _ in range(5)]
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        page = manager.tasks(SLUG, after=after)
        seen += [task["id"] for task in page["tasks"]]
        after = page["next_after"]
    assert seen == wanted


def test_an_annotator_neither_decides_nor_exports_nor_runs(project: Project, annotator: Client) -> None:
    _, (task,) = make_sample(project)
    for attempt in (
        lambda: annotator.decide(SLUG, task.pk, {"A"}),
        lambda: annotator.freeze(SLUG, "v"),
        lambda: annotator.start_run(SLUG, "local", "automated"),
        lambda: annotator.start_import(SLUG, "x"),
        lambda: annotator.create_project("p", "P"),
        lambda: annotator.disputed(SLUG),
    ):
        with pytest.raises(ApiRefused) as refused:
            attempt()
        assert (refused.value.status, refused.value.code) == (403, "forbidden")


def test_a_manager_makes_projects_and_endpoints(project: Project, manager: Client) -> None:
    made = manager.create_project("cans", "Cans", overlap=3, dimensions=["placement_layout"])
    assert (made["slug"], made["overlap"], made["dimensions"]) == ("cans", 3, ["placement_layout"])
    assert {row["project"]: row["role"] for row in manager.me()["memberships"]} == {SLUG: "manager", "cans": "manager"}
    with pytest.raises(ApiRefused, match="slug: Project with this Slug already exists"):
        manager.create_project("cans", "Again")

    manager.create_endpoint("local", "http://127.0.0.1:9/v1", "m", caveat="Drawn scenes only.")
    test = manager.start_endpoint_test("local")
    assert manager.job(test["job_id"])["state"] == "queued"
    with pytest.raises(ApiRefused, match="already exists"):
        manager.create_endpoint("local", "http://127.0.0.1:9/v1", "m")


def test_a_run_is_estimated_started_and_changed(project: Project, manager: Client) -> None:
    make_sample(project)
    create_endpoint(name="local", base_url="http://127.0.0.1:9/v1", model="m", caveat="Drawn scenes only.")
    assert manager.estimate_run(SLUG, "local", "automated")["tasks"] == 1
    run = manager.start_run(SLUG, "local", "automated", budget_usd=2, budget_calls=5)
    assert (run["state"], run["caveat"], run["prepared_at"]) == ("preparing", "Drawn scenes only.", None)
    prepare(Run.objects.get(pk=run["id"]))
    run = manager.run(SLUG, run["id"])
    assert (run["state"], run["progress"]["tasks"], run["budget_calls"]) == ("waiting", 1, 5)
    assert manager.pause_run(SLUG, run["id"])["state"] == "paused"
    assert manager.wait_for_run(SLUG, run["id"])["state"] == "paused"
    resumed = manager.resume_run(SLUG, run["id"], budget_calls=9)
    assert (resumed["state"], resumed["budget_calls"], resumed["budget_usd"]) == ("running", 9, "2.000000")
    with pytest.raises(TookTooLong):
        manager.wait_for_run(SLUG, run["id"], timeout=0)
    assert manager.cancel_run(SLUG, run["id"])["state"] == "cancelled"
    with pytest.raises(ApiRefused) as refused:
        manager.pause_run(SLUG, run["id"])
    assert refused.value.code == "run_moved_on"
    with pytest.raises(ApiRefused, match="endpoint: There is no endpoint 'none'"):
        manager.start_run(SLUG, "none", "automated")


def test_a_run_goes_through_the_batch_api_where_the_endpoint_has_one(project: Project, manager: Client) -> None:
    make_sample(project)
    manager.create_endpoint("cloud", "http://127.0.0.1:9/v1", "m", input_price=1, output_price=1)
    whole = Decimal(manager.estimate_run(SLUG, "cloud", "automated")["cost_usd"])
    assert Decimal(manager.estimate_run(SLUG, "cloud", "automated", batched=True)["cost_usd"]) == whole / 2
    with pytest.raises(ApiRefused, match="batches: cloud is not known to have that feature"):
        manager.start_run(SLUG, "cloud", "automated", batched=True)
    assert manager.start_run(SLUG, "cloud", "automated")["batches"] is None
    manager.change_endpoint("cloud", overrides={"batches": True}, batch_price=0.25)
    with pytest.raises(ApiRefused, match="less than or equal to 1"):
        manager.change_endpoint("cloud", batch_price=2)
    run = manager.start_run(SLUG, "cloud", "automated", batched=True)
    assert (run["batched"], run["batches"]["batches"]) == (True, 0)
    prepare(Run.objects.get(pk=run["id"]))
    chunk = RunChunk.objects.get(run=run["id"])
    assert Job.objects.filter(kind=JobKind.BATCH_CHUNK, object_id=chunk.pk, state="queued").exists()
    now = timezone.now()
    RequestBatch.objects.create(chunk=chunk, state="home", requests=4, answered=4, ignored={"twice": 2}, created_at=now)
    out = {"state": "out", "batch_id": "b", "requests": 3, "answered": 1, "created_at": now, "trouble": "it is slow"}
    RequestBatch.objects.create(chunk=chunk, expires_at=now + timedelta(days=1), **out)
    told = manager.run(SLUG, run["id"])["batches"]
    assert (told["batches"], told["out"], told["requests"], told["answered"]) == (2, 1, 3, 1)
    assert (told["trouble"], told["ignored"], told["expires_at"] > told["created_at"]) == (
        "it is slow",
        {"twice": 2},
        True,
    )


def test_an_endpoints_limits_and_abilities_are_changed_and_its_address_is_not(
    project: Project, manager: Client
) -> None:
    endpoint = manager.create_endpoint("local", "http://127.0.0.1:9/v1", "m", requests_per_minute=60)
    assert (endpoint["requests_per_minute"], endpoint["features"]["data_uri"]) == (60, True)
    changed = manager.change_endpoint("local", requests_per_minute=0, overrides={"json_schema": True})
    assert (changed["requests_per_minute"], changed["concurrency"]) == (0, 8)
    assert (changed["features"]["json_schema"], changed["features"]["logprobs"]) == (True, False)
    for fields, message in (
        ({"base_url": "https://mine.example/v1"}, ""),
        ({"overrides": {"telepathy": True}}, "data_uri"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"concurrency": None}, "cannot be null"),
        ({"images_as": "url"}, "PUBLIC_URL"),
        ({"input_price": -1}, "greater than or equal to 0"),
    ):
        if message:
            with pytest.raises(ApiRefused, match=message):
                manager.change_endpoint("local", **fields)
        else:
            manager.change_endpoint("local", **fields)
    found = manager.endpoint("local")
    assert (found["base_url"], found["concurrency"]) == ("http://127.0.0.1:9/v1", 8)


def test_versions_are_frozen_and_exported_by_jobs(project: Project, manager: Client) -> None:
    _, (task,) = make_sample(project)
    for person in range(2):
        annotate(task, make_member(project, username=f"voter{person}"), "A")
    version = manager.freeze(SLUG, "first")
    assert manager.job(version["job_id"])["state"] == "queued"
    with pytest.raises(ApiRefused, match="only a frozen one"):
        manager.export(SLUG, version["id"])
    freeze_version(DatasetVersion.objects.get())
    assert manager.version(SLUG, version["id"])["splits"]
    export = manager.export(SLUG, version["id"])
    assert manager.get_export(SLUG, export["id"])["state"] == "waiting"
    Job.objects.filter(pk=export["job_id"]).update(state="done")
    assert manager.wait_for_job(export["job_id"])["state"] == "done"


def test_jobs_of_other_peoples_projects_are_not_there(project: Project, manager: Client, live_server: Any) -> None:
    _, (task,) = make_sample(project)
    annotate(task, make_member(project), "A")
    annotate(task, make_member(project), "A")
    version = manager.freeze(SLUG, "first")
    with client_of(make_member(make_project()), live_server) as stranger, pytest.raises(ApiRefused) as refused:
        stranger.job(version["job_id"])
    assert refused.value.status == 404


def test_two_clients_never_hold_the_same_slot(project: Project, annotator: Client, manager: Client) -> None:
    for _ in range(4):
        make_sample(project)
    held: list[int] = []

    def work(client: Client) -> None:
        while (claimed := client.next_task(SLUG)) is not None:
            held.append(claimed.slot_id)
            client.submit(SLUG, claimed, {"A"})

    workers = [threading.Thread(target=work, args=(client,)) for client in (annotator, manager)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(held) == len(set(held)) == 8
    assert Annotation.objects.filter(standing="vote").count() == 8
