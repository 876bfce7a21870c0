"""Pages that start background work and show how it goes: imports, endpoints, runs, versions, exports."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from annotation_server.accounts.models import AuditEvent
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.services import create_export, create_version, freeze_version
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Membership, Project
from annotation_server.runs import services as runs
from annotation_server.runs.costs import Spent
from annotation_server.runs.models import Endpoint, EndpointTest, RequestBatch, Run
from annotation_server.samples import storage
from annotation_server.samples.models import Image, ImportBatch
from tests.server.factories import annotate, make_member, make_person, make_project, make_sample, prepare

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def project(client: Client) -> Project:
    """Its manager is signed in."""
    project = make_project(slug="bottles", dimensions=["physical_shadow"])
    client.force_login(make_member(project, Membership.Role.MANAGER))
    return project


@pytest.fixture
def incoming() -> Path:
    directory = Path(settings.WINNOW_HOME) / "incoming"
    (directory / "friday").mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def endpoint() -> Endpoint:
    return runs.create_endpoint(
        name="local", base_url="http://127.0.0.1:9/v1", model="m", caveat="Knows drawn scenes only."
    )


def test_an_import_is_a_job_with_live_progress(client: Client, project: Project, incoming: Path) -> None:
    started = client.post("/projects/bottles/imports", {"source": "friday"})

    batch = ImportBatch.objects.get()
    assert started.status_code == 302
    assert (batch.source, batch.name) == (str((incoming / "friday").resolve()), "friday")
    job = Job.objects.get(kind=JobKind.IMPORT_BATCH, object_id=batch.pk)
    Job.objects.filter(pk=job.pk).update(message="checking images", progress_done=3, progress_total=7)

    row = client.get(f"/projects/bottles/imports/{batch.pk}", headers=HTMX).content.decode()
    assert "checking images" in row
    assert 'hx-trigger="every 1s"' in row

    ImportBatch.objects.update(state="failed", error="samples.jsonl line 3: no such file")
    row = client.get(f"/projects/bottles/imports/{batch.pk}", headers=HTMX).content.decode()
    assert "samples.jsonl line 3: no such file" in row
    assert "hx-trigger" not in row


@pytest.mark.parametrize("source", ["..", "../secret_key", "/etc/passwd", "nothing-here", "", "link", "nul\x00byte"])
def test_only_what_lies_in_incoming_is_imported(
    client: Client, project: Project, incoming: Path, source: str, tmp_path: Path
) -> None:
    link = incoming / "link"
    if not link.is_symlink():
        link.symlink_to(tmp_path)
    page = client.post("/projects/bottles/imports", {"source": source})
    link.unlink()
    assert page.status_code == 422
    assert not ImportBatch.objects.exists()


def test_an_endpoint_is_made_and_tested_by_a_job(client: Client, project: Project) -> None:
    client.force_login(make_person(is_superuser=True))
    fields = {
        "name": "cloud",
        "base_url": "https://models.example/v1/",
        "model": "big",
        "api_key_env": "CLOUD_KEY",
        "input_price": "0.5",
        "output_price": "1.5",
        "concurrency": "4",
        "timeout_seconds": "60",
        "image_side": "768",
    }
    assert client.post("/endpoints", fields)["Location"] == "/endpoints/cloud"
    assert "Never tested." in client.get("/endpoints/cloud").content.decode()

    client.post("/endpoints/cloud")

    test = EndpointTest.objects.get()
    assert Job.objects.get().object_id == test.pk
    assert "hx-trigger" in client.get("/endpoints/cloud").content.decode()
    runs.record_endpoint_test(test.pk, ok=False, report={"detail": "connection refused"})
    fragment = client.get(f"/endpoint-tests/{test.pk}", headers=HTMX).content.decode()
    assert "connection refused" in fragment
    assert "hx-trigger" not in fragment


def test_what_a_test_found_is_shown_and_somebody_may_know_better(
    client: Client, project: Project, endpoint: Endpoint
) -> None:
    test = runs.start_endpoint_test(endpoint)
    features = {"json_schema": {"works": False, "detail": "it ignored the schema"}}
    spent = Spent(calls=7, input_tokens=6020, output_tokens=350, cost_usd=Decimal("0.00012"))
    runs.record_endpoint_test(
        test.pk, ok=True, report={"features": features}, found={"json_schema": False}, spent=spent
    )
    page = client.get("/endpoints/local").content.decode()
    assert "The test took 7 calls, 6020 + 350 tokens, 0.000120 USD." in page
    assert "So far 1 test took 6020 + 350 tokens, 0.000120 USD" in page
    by_api = client.get(f"/api/v1/endpoint-tests/{test.pk}").json()
    assert (by_api["calls"], by_api["input_tokens"], Decimal(by_api["cost_usd"])) == (7, 6020, Decimal("0.00012"))
    assert Decimal(client.get("/api/v1/endpoints/local").json()["tests_cost_usd"]) == Decimal("0.00012")
    assert "it ignored the schema" in page
    assert "Answers in a JSON schema: no" in page

    fields = {"input_price": "0", "output_price": "2", "concurrency": "4", "timeout_seconds": "60", "image_side": "512"}
    changed = client.post("/endpoints/local/change", fields | {"requests_per_minute": "90", "json_schema": "yes"})
    assert changed.status_code == 302
    endpoint.refresh_from_db()
    assert (endpoint.requests_per_minute, endpoint.overrides) == (90, {"json_schema": True})
    assert (endpoint.base_url, endpoint.model) == ("http://127.0.0.1:9/v1", "m")
    page = client.get("/endpoints/local").content.decode()
    assert "Answers in a JSON schema: yes" in page
    assert "90 calls a minute" in page

    wrong = client.post("/endpoints/local/change", fields | {"images_as": "url"})
    assert wrong.status_code == 422
    assert "PUBLIC_URL" in wrong.content.decode()
    endpoint.refresh_from_db()
    assert endpoint.images_as == "data_uri"


def test_a_run_through_the_batch_api_says_what_it_waits_for(
    client: Client, project: Project, endpoint: Endpoint
) -> None:
    make_sample(project)
    fields = {"endpoint": endpoint.pk, "approach": "automated", "temperature": 0, "max_tokens": 64, "max_attempts": 3}
    refused = client.post("/projects/bottles/runs/start", fields | {"batched": "on"})
    assert refused.status_code == 422
    assert "batches: local is not known to have that feature" in refused.content.decode()
    runs.change_endpoint(endpoint, {"overrides": {"batches": True}})
    assert client.post("/projects/bottles/runs/start", fields | {"batched": "on"}).status_code == 302
    run = prepare(Run.objects.get())
    now = timezone.now()
    chunk = run.chunks.get()
    batches = [
        RequestBatch.objects.create(
            chunk=chunk,
            state="out",
            batch_id=str(n),
            requests=10,
            answered=n,
            created_at=now,
            expires_at=now,
            trouble="",
        )
        for n in range(3)
    ]
    RequestBatch.objects.create(chunk=chunk, state="home", requests=5, ignored={"malformed": 2})
    page = client.get(f"/projects/bottles/runs/{run.pk}").content.decode()
    assert "through the Batch API" in page
    assert "Waiting for the endpoint: 3 of 4 batches out, 3 of 30 requests answered, created 20" in page
    assert "at the latest 20" in page
    assert "<code>malformed</code> 2" in page
    Run.objects.update(state="cancelled")
    assert "hx-trigger" in client.get(f"/projects/bottles/runs/{run.pk}").content.decode()
    RequestBatch.objects.filter(pk__in=[batch.pk for batch in batches]).update(state="home")
    page = client.get(f"/projects/bottles/runs/{run.pk}").content.decode()
    assert "4 batches, all home" in page
    assert "hx-trigger" not in page


def test_a_manager_cannot_have_the_servers_secrets_sent_anywhere(client: Client, project: Project) -> None:
    """An endpoint sends the environment variable it names to its own address."""
    fields = {"name": "mine", "base_url": "https://mine.example/v1", "model": "m", "api_key_env": "WINNOW_SECRET_KEY"}
    rest = {"input_price": 0, "output_price": 0, "concurrency": 1, "timeout_seconds": 1, "image_side": 512}

    by_api = client.post("/api/v1/endpoints", fields, "application/json")
    assert (by_api.status_code, by_api.json()["error"]["field"]) == (403, "api_key_env")
    client.post("/endpoints", fields | rest)
    assert Endpoint.objects.get().api_key_env == ""


def test_a_mistake_in_an_endpoint_is_said_on_the_page(client: Client, project: Project, endpoint: Endpoint) -> None:
    fields = {"name": "local", "base_url": "http://127.0.0.1:9/v1", "model": "m", "input_price": "0"}
    sizes = {"output_price": "0", "concurrency": "1", "timeout_seconds": "1", "image_side": "512"}
    page = client.post("/endpoints", fields | sizes)
    assert page.status_code == 422
    assert "Endpoint with this Name already exists." in page.content.decode()


RUN = {"approach": "automated", "temperature": "0", "max_tokens": "256", "max_attempts": "2"}


def test_an_estimate_says_what_re_solves_take(client: Client, project: Project, endpoint: Endpoint) -> None:
    (task,) = make_sample(project)[1]
    annotate(task, make_member(project), "A")
    project.blind_resolve = True
    project.save()
    Endpoint.objects.update(output_price=1)
    fields = RUN | {"endpoint": endpoint.pk, "approach": "answer_driven", "estimate": "1"}
    page = client.post("/projects/bottles/runs/start", fields).content.decode()
    assert "Of it re-solves: 1 call, 0.0003 USD." in page
    asked = {"endpoint": endpoint.name, "approach": "answer_driven", "max_tokens": 256}
    address = "/api/v1/projects/bottles/runs/estimate"
    said = client.post(address, asked, content_type="application/json").json()
    assert (said["tasks"], said["resolve_calls"], Decimal(said["resolve_cost_usd"])) == (1, 1, Decimal("0.000256"))
    assert Decimal(said["cost_usd"]) == 2 * Decimal(said["resolve_cost_usd"])


def test_a_run_is_estimated_started_paused_resumed_and_cancelled(
    client: Client, project: Project, endpoint: Endpoint
) -> None:
    make_sample(project)
    fields = RUN | {"endpoint": endpoint.pk, "budget_usd": "1.5", "budget_calls": "7"}

    estimated = client.post("/projects/bottles/runs/start", fields | {"estimate": "1"}).content.decode()
    assert "1 task," in estimated
    assert "Knows drawn scenes only." in estimated
    assert "re-solves" not in estimated
    assert not Run.objects.exists()

    client.post("/projects/bottles/runs/start", fields)
    run = Run.objects.get()
    address = f"/projects/bottles/runs/{run.pk}"
    page = client.get(address).content.decode()
    assert "Knows drawn scenes only." in page
    assert "1.5 USD, 7 calls" in page
    assert "hx-trigger" in page
    assert "Prepare a run" in page
    prepare(run)
    assert "Prepare a run" not in client.get(address).content.decode()

    for verb, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        client.post(f"{address}/{verb}")
        run.refresh_from_db()
        assert run.state == state
    assert "hx-trigger" not in client.get(address, headers=HTMX).content.decode()
    again = client.post(f"{address}/pause", follow=True).content.decode()
    assert "moved on already" in again
    assert client.post(f"{address}/explode").status_code == 404
    verbs = AuditEvent.objects.order_by("pk").values_list("verb", flat=True)
    assert [verb for verb in verbs if verb.startswith("run.")] == ["run.start", "run.pause", "run.resume", "run.cancel"]


def test_a_run_with_nothing_to_do_is_one_line(client: Client, project: Project, endpoint: Endpoint) -> None:
    page = client.post("/projects/bottles/runs/start", RUN | {"endpoint": endpoint.pk})
    assert page.status_code == 422
    assert "nothing to annotate in bottles" in page.content.decode()


def test_without_an_endpoint_the_start_page_says_what_to_do(client: Client, project: Project) -> None:
    assert "There is no endpoint to run with." in client.get("/projects/bottles/runs/start").content.decode()


def test_a_version_is_frozen_and_exported_by_jobs(client: Client, project: Project) -> None:
    _, (task,) = make_sample(project)
    annotate(task, make_member(project), "A")

    client.post("/projects/bottles/versions", {"name": "first"})
    version = DatasetVersion.objects.get()
    address = f"/projects/bottles/versions/{version.pk}"
    assert Job.objects.filter(kind=JobKind.FREEZE_VERSION, object_id=version.pk).exists()
    assert "hx-trigger" in client.get(address).content.decode()
    assert client.post(f"{address}/export").status_code == 404  # not frozen yet

    freeze_version(version)
    page = client.get(address).content.decode()
    assert version.version_id in page
    assert "1 records about 1 originals" in page

    client.post(f"{address}/export")
    assert Job.objects.filter(kind=JobKind.EXPORT_VERSION, object_id=Export.objects.get().pk).exists()
    taken = client.post("/projects/bottles/versions", {"name": "first"})
    assert taken.status_code == 422
    assert "expected a new name" in taken.content.decode()


def test_the_small_files_of_an_export_are_downloads_and_nothing_else_is(client: Client, project: Project) -> None:
    _, (task,) = make_sample(project)
    annotate(task, make_member(project), "A")
    for image in Image.objects.all():
        storage.put(image.path, b"x")
    version = create_version(project, "first", None)
    freeze_version(version)
    export = create_export(version, None)
    directory = Path(export.directory)
    directory.mkdir(parents=True)
    for name in ("manifest.json", "records-00000.jsonl", "private.txt"):
        (directory / name).write_text(name)
    Export.objects.update(state="done")

    found = client.get(f"/projects/bottles/exports/{export.pk}/manifest.json")
    assert b"".join(found) == b"manifest.json"
    assert "attachment" in found["Content-Disposition"]
    for name in ("private.txt", "..", "images", "records-00001.jsonl"):
        assert client.get(f"/projects/bottles/exports/{export.pk}/{name}").status_code == 404, name
    client.force_login(make_member(make_project(), Membership.Role.MANAGER))
    assert client.get(f"/projects/bottles/exports/{export.pk}/manifest.json").status_code == 404


def test_an_ml_engineer_exports_and_does_not_freeze(client: Client, project: Project) -> None:
    client.force_login(make_member(project, Membership.Role.ML_ENGINEER))
    assert client.get("/projects/bottles/versions").status_code == 200
    assert client.post("/projects/bottles/versions", {"name": "first"}).status_code == 403
