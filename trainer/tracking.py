"""Where a run's figures go besides metrics.jsonl: TensorBoard event files, and services somebody may use already.

Event files are written here, byte by byte: TensorBoard itself is needed only to look at them. W&B and Trackio speak
the same three verbs (init, log, finish) and share one adapter. Not here: metrics.jsonl (checkpoint.py), plots
(report.py).
"""

from __future__ import annotations

import importlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.config import Refused, Tracker


class TrackingRefused(Refused):
    """A tracker that was asked for and cannot be used."""


class Writes(Protocol):
    """What a run needs of a tracker."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one step."""

    def close(self) -> None:
        """The run is over."""


def open_trackers(wanted: Sequence[Tracker], run_dir: Path, settings: Mapping[str, Any], step: int) -> list[Writes]:
    """The trackers of a run that goes on after `step`. TrackingRefused when a package is missing."""
    return [
        EventFile(run_dir / "tensorboard", step) if kind is Tracker.TENSORBOARD else _Service(kind, run_dir, settings)
        for kind in wanted
    ]


def flat_numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested figures, named by their path: ``validation/dpa``."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


class _Service:
    """W&B or Trackio: a module with init, log and finish."""

    def __init__(self, kind: Tracker, run_dir: Path, settings: Mapping[str, Any]) -> None:
        try:
            self._module = importlib.import_module(kind.value)
        except ModuleNotFoundError:
            raise TrackingRefused(
                f"tracking: {kind} is not installed: pip install {kind}, or take it out of tracking"
            ) from None
        self._module.init(project="winnow", name=run_dir.name, config=dict(settings))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one step."""
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        """The run is over."""
        self._module.finish()


class EventFile:
    """A TensorBoard event file: TFRecords of Event messages (tensorflow/core/util/event.proto).

    A resumed run begins a new file that tells TensorBoard to forget what came after `step`.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._path = directory / name
        self._record(_double(1, now) + _bytes(3, b"brain.Event:2"))
        if step:
            # session_log { status: START } at the first step to come again
            self._record(_double(1, now) + _varint_field(2, step + 1) + _bytes(7, _varint_field(1, 1)))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One event with a value per figure."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value)) for name, value in figures.items()
        )
        self._record(_double(1, time.time()) + _varint_field(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """The run is over. The file is open only while an event is written."""

    def _record(self, message: bytes) -> None:
        length = struct.pack("<Q", len(message))
        with self._path.open("ab") as file:
            file.write(length + _masked_crc(length) + message + _masked_crc(message))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 if value & 1 else value >> 1  # Castagnoli, reflected
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
