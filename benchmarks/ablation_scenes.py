"""Drawn scenes to ablate on: what is to be learnt from has reasonings as they are in life, some of them bad.

``fixtures.scene_export`` draws; here a share of the train records gets a failing. Answers stay right: what the cold
start learns wrongly, reward can mend. Which record fails how follows from its id. Not here: who learns (ablation.py).
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from trainer.contract.dimensions import Split
from trainer.contract.exports import read_manifest, read_records, write_export
from trainer.contract.records import Record

ROOT = Path(__file__).resolve().parent.parent


class Failing(StrEnum):
    """What is wrong with a reasoning."""

    CONTRADICTS = "contradicts"
    """One candidate is called the opposite of what the answer says."""
    CURT = "curt"
    """The conclusion alone, without anything that was seen."""
    STOCK = "stock"
    """The same sentence about any pictures."""


_PART = re.compile(r"(?P<letter>[A-H]): (?P<seen>.*?), (?P<verdict>fine|flawed)\.")
_LISTS = re.compile(r"Fine: .*$")
_OPPOSITE = {"fine": "flawed", "flawed": "fine"}


def draw_scenes(
    directory: Path, *, seed: int, train: int, validation: int, test: int, hardness: float, imperfect: float
) -> int:
    """An export of drawn scenes at `directory`, a share `imperfect` of its train reasonings failing; an exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn"
        done = subprocess.run(
            [
                sys.executable, "-m", "fixtures.scene_export", str(drawn), "--size", "64", "--seed", str(seed),
                "--hardness", str(hardness), "--train", str(train), "--validation", str(validation),
                "--test", str(test),
            ],
            cwd=ROOT, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.returncode
        manifest = read_manifest(drawn)
        write_export(
            directory,
            records=(spoilt(record, imperfect) for record in read_records(drawn)),
            polarity=manifest.polarity,
            prompt_versions=manifest.prompt_versions,
            image_source=lambda path: drawn / path,
            about={**manifest.about, "imperfect": imperfect},
        )
    return 0


def spoilt(record: Record, share: float) -> Record:
    """The record, with a failing in its reasoning if its lot says so; the failing is named in its meta."""
    dice = random.Random(f"imperfect {record.id}")
    if record.split is not Split.TRAIN or dice.random() >= share:
        return record
    failing = dice.choice(list(Failing))
    said = record.rationale
    match failing:
        case Failing.CONTRADICTS:
            said = _contradicting(said, dice)
        case Failing.CURT:
            said = "".join(_LISTS.findall(said))
        case Failing.STOCK:
            said = "One must look at each candidate as a whole, and compare it with the original."
    return replace(record, rationale=said, meta={**record.meta, "failing": failing.value})


def _contradicting(said: str, dice: random.Random) -> str:
    turned = dice.choice(_PART.findall(said))[0]
    verdicts: dict[str, list[str]] = {"fine": [], "flawed": []}

    def turn(found: re.Match[str]) -> str:
        verdict = _OPPOSITE[found["verdict"]] if found["letter"] == turned else found["verdict"]
        verdicts[verdict].append(found["letter"])
        return f"{found['letter']}: {found['seen']}, {verdict}."

    body = _PART.sub(turn, _LISTS.sub("", said))
    fine, flawed = (", ".join(verdicts[verdict]) or "none" for verdict in ("fine", "flawed"))
    return f"{body}Fine: {fine}. Flawed: {flawed}."
