"""Stored images by content: for members, with headers that make them harmless, gone when taken down."""

from __future__ import annotations

import pytest
from django.test import Client
from django.utils import timezone

from annotation_server.projects.models import Project
from annotation_server.samples import storage
from annotation_server.samples.models import Image
from tests.server.factories import make_image, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db

CONTENT = b"not really a picture: nothing decodes it here"


@pytest.fixture
def stored() -> Image:
    image = make_image(size=len(CONTENT))
    storage.put(image.path, CONTENT)
    return image


@pytest.fixture
def project(stored: Image) -> Project:
    project = make_project()
    make_sample(project, original=stored)
    return project


def test_it_works(client: Client, project: Project, stored: Image) -> None:
    client.force_login(make_member(project))
    response = client.get(f"/images/{stored.sha256}")
    assert b"".join(response) == CONTENT
    assert response["Content-Type"] == "image/png"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response["Cache-Control"] == "private, max-age=31536000, immutable"
    assert response["Content-Length"] == str(len(CONTENT))


def test_a_stranger_gets_nothing(client: Client, project: Project, stored: Image) -> None:
    client.force_login(make_member(make_project()))
    assert client.get(f"/images/{stored.sha256}").status_code == 404
    assert client.get(f"/api/v1/images/{stored.sha256}").status_code == 404


def test_candidates_are_served_too(client: Client, project: Project) -> None:
    candidate = Image.objects.filter(samples_as_candidate__sample__project=project).first()
    assert candidate is not None
    storage.put(candidate.path, b"x")
    client.force_login(make_member(project))
    response = client.get(f"/images/{candidate.sha256}")
    assert response.status_code == 200
    response.close()


def test_an_image_that_was_taken_down_is_gone(client: Client, project: Project, stored: Image) -> None:
    client.force_login(make_member(project))
    Image.objects.filter(pk=stored.pk).update(withdrawn_at=timezone.now())
    assert client.get(f"/images/{stored.sha256}").status_code == 404


def test_bytes_that_are_missing_are_no_crash(client: Client, project: Project, stored: Image) -> None:
    client.force_login(make_member(project))
    storage.delete(stored.path)
    assert client.get(f"/images/{stored.sha256}").status_code == 404
    assert client.get("/images/nonsense").status_code == 404
