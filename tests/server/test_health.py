"""The three addresses a machine asks."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from annotation_server import health
from annotation_server.jobs.models import Job, JobKind

pytestmark = pytest.mark.django_db


def test_healthz_says_ok(client: Client) -> None:
    response = client.get("/healthz")
    assert (response.status_code, response.content) == (200, b"ok")


def test_readyz_names_the_part_that_is_down(client: Client) -> None:
    """The tests' settings name a broker where nobody listens."""
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"database": "ok", "migrations": "ok", "broker": "down"}


def test_readyz_is_200_when_every_part_answers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "broker_error", lambda: "")
    response = client.get("/readyz")
    assert response.status_code == 200


def test_metrics_count_jobs_and_the_oldest_wait(client: Client) -> None:
    now = timezone.now()
    Job.objects.create(kind=JobKind.IMPORT_BATCH, object_id=1, due_at=now - timedelta(seconds=90))
    Job.objects.create(kind=JobKind.IMPORT_BATCH, object_id=2, due_at=now + timedelta(hours=1))
    text = client.get("/metrics").content.decode()
    assert f'winnow_jobs{{kind="{JobKind.IMPORT_BATCH}",state="queued"}} 2' in text
    waited = float(text.split("winnow_oldest_due_job_seconds ")[-1])
    assert 90 <= waited < 100


def test_every_page_carries_a_content_security_policy(client: Client) -> None:
    policy = client.get("/healthz").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
