"""Bringing a trained model back: its run directory becomes a model version with an endpoint, so with an annotator.

Not here: launching training, serving the model (`python -m trainer serve`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from annotation_server.datasets.models import DatasetVersion
from annotation_server.runs.services import EndpointRefused, create_endpoint
from annotation_server.training.models import ModelVersion


class ModelRefused(ValueError):
    """A model that cannot be registered; the message is one line."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a trainer's run directory says."""

    method: str
    export_version: str
    evaluation: dict[str, Any]
    """Empty where the run was not evaluated."""


def read_run(run_dir: Path) -> RunFiles:
    """Read a run directory of the trainer. Raises ModelRefused naming the file."""
    if not run_dir.is_dir():
        raise ModelRefused(f"{run_dir}: no such directory: expected a run directory of the trainer")
    config = _read_json(run_dir / "config.json", required=True)
    environment = _read_json(run_dir / "environment.json", required=True)
    method = config.get("command")
    if method not in ("sft", "grpo"):
        raise ModelRefused(f"{run_dir / 'config.json'}: field 'command': expected sft or grpo, found {method!r}")
    version_id = environment.get("export_version")
    if not isinstance(version_id, str):
        raise ModelRefused(f"{run_dir / 'environment.json'}: field 'export_version': expected a version's id")
    return RunFiles(method, version_id, _read_json(run_dir / "evaluation.json", required=False))


def _read_json(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelRefused(f"{path} is missing: expected a run directory of the trainer") from None
    except OSError as error:
        raise ModelRefused(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelRefused(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ModelRefused(f"{path}: expected a JSON object")
    return found


def register_model(name: str, run_dir: Path, *, base_url: str, model: str, caveat: str = "") -> ModelVersion:
    """Make a model version and the endpoint that serves it, from then on an annotator. Raises ModelRefused.

    The dataset version it learnt from is linked where this platform froze it, which it need not have.
    """
    files = read_run(run_dir)
    if ModelVersion.objects.filter(name=name).exists():
        raise ModelRefused(f"there is a model {name!r} already: expected a new name")
    learnt_from = DatasetVersion.objects.filter(
        version_id=files.export_version, state=DatasetVersion.State.FROZEN
    ).order_by("pk")
    with transaction.atomic():
        try:
            endpoint = create_endpoint(name=name, base_url=base_url, model=model, caveat=caveat)
        except EndpointRefused as error:
            raise ModelRefused(str(error)) from None
        return ModelVersion.objects.create(
            name=name,
            run_dir=str(run_dir),
            method=files.method,
            dataset_version=learnt_from.first(),
            evaluation=files.evaluation,
            endpoint=endpoint,
        )
