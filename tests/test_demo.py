"""The whole loop, as `make demo` runs it: it ends by itself, and what was trained has looked at the images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.contract.dimensions import DIMENSIONS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.soak
@pytest.mark.needs_torch
@pytest.mark.timeout(900)
def test_it_ends_well_and_beats_a_constant_answer_in_every_dimension(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.demo", "--keep", str(tmp_path / "home")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    figures = json.loads((ROOT / "var" / "demo.json").read_text())
    assert figures["version"]["splits"]["test"] >= 500
    assert {"manual", "automated", "answer_driven"} <= figures["records"].keys()
    for model in ("sft", "grpo"):
        for dimension in DIMENSIONS:
            lead = figures["learning"][model]["over_constant"][dimension]
            assert lead["value"] >= 0.20, (model, dimension, lead)
            assert lead["low"] > 0, (model, dimension, lead)
    assert figures["at_work"]["tasks"] == 48
