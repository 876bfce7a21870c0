"""The report of a run: every figure that was logged has its plot, and the page needs nothing but itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.__main__ import main
from trainer.report import plots_of, write_report


def make_run(directory: Path, rows: list[dict[str, Any]]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"command": "grpo", "model_dir": "<start>"}))
    (directory / "environment.json").write_text(json.dumps({"export_version": "abc", "packages": {"torch": "2"}}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def grpo_rows(steps: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "reward": 0.5 + step / 200,
            "exact_by_dimension": {"physical_shadow": step / 100, "placement_layout": 0.5},
            "zero_advantage": 0.5,
            "records": {"unseen": 100 - step, "hard": step},
            "completion_tokens": 30.0,
            "truncated": 0.01,
            "parsable": 0.9,
            "kl": 0.01 * step,
            "tokens_per_second": 900.0,
            "grad_norm": 1.0,
            "loss": 0.1,
        }
        for step in range(1, steps + 1)
    ]


def test_every_figure_that_was_asked_for_has_its_plot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grpo_rows(60))
    said = write_report(run)
    assert said == f"report: {run / 'report.html'}"
    names = {path.stem for path in (run / "plots").glob("*.png")}
    assert {"reward", "exact", "zero_advantage", "hard_pool", "lengths", "kl", "throughput"} <= names
    for path in (run / "plots").glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors(1 << 16) or []) > 20  # something is drawn


def test_a_figure_that_is_always_zero_has_none(tmp_path: Path) -> None:
    rows = [{**row, "kl": 0.0} for row in grpo_rows(5)]
    assert "kl" not in {plot.name for plot in plots_of(rows)}


def test_the_page_needs_nothing_but_itself_and_shows_words_as_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grpo_rows(5))
    sample = {"step": 5, "dimension": "physical_shadow", "gold": "A", "answer": None, "reward": 0.0}
    rows = [
        {**sample, "text": "<think><script>alert(1)</script>", "record_id": "s:1"},
        {**sample, "text": "one\u2028two\u0085three", "record_id": "s:3"},
        {**sample, "step": 4, "text": "earlier words"},
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    review = {"record_id": "s:2", "reason": "suspect_label", "standing_answer": "A", "model_answer": "B", "share": 0.9}
    (run / "review.jsonl").write_text(json.dumps({**review, "rollouts": 24}) + "\n")
    write_report(run)
    page = (run / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "earlier words" not in page
    assert "one\u2028two\u0085three" in page, "a separator of Unicode is no end of a row"
    assert "&lt;start&gt;" in page
    assert "1 suspect labels, 0 other parked records" in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)"', page))
    assert not re.findall(r"(?:href|@import|url\()", page)


def test_a_run_that_goes_on_and_one_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", grpo_rows(3))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    assert main(["report", "--set", f"run_dir={run}"]) == 0
    assert "report.html" in capsys.readouterr().out
    assert main(["report", "--set", f"run_dir={tmp_path / 'none'}"]) == 1
    assert "holds no run" in capsys.readouterr().err
