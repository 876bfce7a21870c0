"""Figures reach TensorBoard as TensorBoard reads them, and a service that is not installed is one clear line."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.config import Tracker
from trainer.tracking import EventFile, TrackingRefused, _masked_crc, flat_numbers, open_trackers


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a directory."""
    found = EventAccumulator(str(directory))
    found.Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.write(1, {"reward": 0.25, "validation/dpa": 0.5})
    file.write(300, {"reward": -1.5})
    file.close()
    assert scalars(tmp_path) == {"reward": [(1, 0.25), (300, -1.5)], "validation/dpa": [(1, 0.5)]}


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = EventFile(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    second = EventFile(tmp_path, step=2)
    second.write(3, {"loss": 33.0})
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_the_checksum_is_castagnoli_masked() -> None:
    # crc32c("123456789") = 0xE3069283 (RFC 3720, B.4, the same polynomial); the mask is TFRecord's.
    crc = 0xE3069283
    assert struct.unpack("<I", _masked_crc(b"123456789"))[0] == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_numbers_are_named_by_their_path() -> None:
    given = {"loss": 1, "records": {"hard": 3}, "phase": "warm", "stopped": True}
    assert dict(flat_numbers(given)) == {"loss": 1.0, "records/hard": 3.0}


def test_a_service_that_is_not_installed_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackingRefused, match="tracking: wandb is not installed: pip install wandb, or take it out"):
        open_trackers([Tracker.WANDB], tmp_path, {}, 0)


def test_a_service_hears_of_the_run_its_figures_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with the three verbs that both services have, in place of theirs."""
    (tmp_path / "trackio.py").write_text(
        "heard = []\n"
        "def init(**given): heard.append(('init', given))\n"
        "def log(figures, step): heard.append(('log', figures, step))\n"
        "def finish(): heard.append(('finish',))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tracker,) = open_trackers([Tracker.TRACKIO], tmp_path / "run-7", {"steps": 3}, 0)
    tracker.write(2, {"reward": 0.5})
    tracker.close()
    heard = sys.modules["trackio"].heard
    monkeypatch.delitem(sys.modules, "trackio")
    assert heard == [
        ("init", {"project": "winnow", "name": "run-7", "config": {"steps": 3}}),
        ("log", {"reward": 0.5}, 2),
        ("finish",),
    ]
