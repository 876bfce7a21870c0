"""The benchmark of real sizes runs anywhere at a tiny one: every line is there, and the sides can be compared."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_step


@pytest.mark.slow
def test_every_line_is_measured_at_a_tiny_size(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"pixels": 64, "completion": 6, "group": 3, "prompts": 2, "rounds": 1, "peak-tflops": 0.1}
    given = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    gpu_step.main(["--size", "tiny", "--device", "cpu", *given])
    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(lines) == {f"gpu_step.{name}" for name in ("rollout", "train_seconds", "train_mfu", "step_seconds")}
    setting = lines["gpu_step.step_seconds"]["setting"]
    assert (setting["group"], setting["completion_tokens"], setting["prompts_per_step"]) == (3, 6, 2)
    assert all(line["value"] > 0 for line in lines.values())
    assert lines["gpu_step.train_seconds"]["peer"] > 0
    assert 0 < lines["gpu_step.train_mfu"]["value"] < 1
