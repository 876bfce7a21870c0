"""A trained model comes back as an endpoint and an annotator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from annotation_server.annotations.models import Annotator
from annotation_server.runs.models import Endpoint
from annotation_server.training.models import ModelVersion
from tests.server.pictures import freeze, make_resolved_project

pytestmark = pytest.mark.django_db
URL = "http://127.0.0.1:9000/v1"


def run_directory(path: Path, version_id: str = "f" * 64, **files: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text(files.get("config", json.dumps({"command": "grpo", "steps": 3})))
    (path / "environment.json").write_text(files.get("environment", json.dumps({"export_version": version_id})))
    if "evaluation" in files:
        (path / "evaluation.json").write_text(files["evaluation"])
    return path


def test_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = freeze(make_resolved_project(tmp_path / "in", slug="bottles"))
    run_dir = run_directory(tmp_path / "run", version.version_id, evaluation=json.dumps({"exact": 0.7}))

    call_command("register_model", "screener", str(run_dir), "--base-url", f"{URL}/", "--model", "served")

    model = ModelVersion.objects.get(name="screener")
    assert (model.method, model.dataset_version, model.evaluation) == ("grpo", version, {"exact": 0.7})
    assert model.endpoint is not None
    assert (model.endpoint.base_url, model.endpoint.model) == (URL, "served")
    assert (model.endpoint.annotator.kind, model.endpoint.annotator.name) == (Annotator.Kind.MODEL, "screener")
    assert capsys.readouterr().out == "screener: grpo on bottles/v1, evaluated; annotates through endpoint screener\n"


def test_a_run_on_a_foreign_version_without_evaluation_is_welcome(tmp_path: Path) -> None:
    call_command("register_model", "screener", str(run_directory(tmp_path / "run")), "--base-url", URL)

    model = ModelVersion.objects.get()
    assert (model.dataset_version, model.evaluation) == (None, {})


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"config": "{"}, "config.json: not JSON"),
        ({"config": "[]"}, "config.json: expected a JSON object"),
        ({"config": "{}"}, "config.json: field 'command': expected sft or grpo, found None"),
        ({"environment": "{}"}, "environment.json: field 'export_version': expected a version's id"),
    ],
)
def test_a_directory_that_is_no_run_is_one_line(tmp_path: Path, files: dict[str, str], why: str) -> None:
    run_dir = run_directory(tmp_path / "run", **files)

    with pytest.raises(CommandError, match="run/") as told:
        call_command("register_model", "screener", str(run_dir), "--base-url", URL)

    assert why in str(told.value)
    assert not Endpoint.objects.exists()


def test_it_refuses_no_directory_a_taken_name_and_a_bad_address(tmp_path: Path) -> None:
    run_dir = str(run_directory(tmp_path / "run"))
    call_command("register_model", "screener", run_dir, "--base-url", URL)

    with pytest.raises(CommandError, match="no such directory"):
        call_command("register_model", "other", str(tmp_path / "gone"), "--base-url", URL)
    with pytest.raises(CommandError, match=r"config\.json is missing"):
        call_command("register_model", "other", str(tmp_path), "--base-url", URL)
    with pytest.raises(CommandError, match="there is a model 'screener' already"):
        call_command("register_model", "screener", run_dir, "--base-url", URL)
    with pytest.raises(CommandError, match="base_url"):
        call_command("register_model", "other", run_dir, "--base-url", "not a url")
    assert ModelVersion.objects.count() == 1
