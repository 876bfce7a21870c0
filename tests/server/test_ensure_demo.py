"""The demo project: made once, complete, and only where its well-known passwords harm nobody."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from annotation_server.projects.models import Project
from annotation_server.runs.models import Endpoint
from annotation_server.tasks.models import Task

pytestmark = pytest.mark.django_db


def ensure_demo() -> str:
    said = io.StringIO()
    call_command("ensure_demo", samples=1, size=64, stdout=said)
    return said.getvalue()


def test_it_works(client: Client, settings: Any) -> None:
    settings.DEMO, settings.MODEL = True, "local"

    first, second = ensure_demo(), ensure_demo()

    assert first == second
    assert "Sign in as annotator with the password demo" in first
    assert Project.objects.get().slug == "demo"
    assert Task.objects.count() == 4
    endpoint = Endpoint.objects.get()
    assert (endpoint.name, endpoint.base_url) == ("local", settings.LOCAL_MODEL_URL)
    assert endpoint.caveat == "Knows drawn scenes only."
    assert client.login(username="annotator", password="demo")
    assert client.get("/projects/demo/annotate").status_code == 200


def test_without_the_local_model_there_is_no_endpoint(settings: Any) -> None:
    settings.DEMO, settings.MODEL = True, "none"
    ensure_demo()
    assert not Endpoint.objects.exists()


def test_it_refuses_where_others_could_sign_in(settings: Any) -> None:
    settings.DEMO = False
    with pytest.raises(CommandError, match="well known"):
        ensure_demo()
    assert not Project.objects.exists()
