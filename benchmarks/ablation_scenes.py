"""Drawn scenes to ablate on: what is to be learnt from has reasonings as they are in life, some of them bad.

``fixtures.scene_export`` draws; here train records get failings. Who writes reasonings overlooks most of what is faint
and calls it fine, and now and then writes badly whatever is seen. Answers stay right, as people accepted them: what the
cold start learns wrongly, reward can mend. Which record fails how follows from its id. Not here: who learns
(ablation.py).
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

from fixtures.defects import APPEARANCE, FAINT
from fixtures.rationales import rationale
from fixtures.scenes import describe_sample
from trainer.contract.dimensions import Split
from trainer.contract.exports import read_manifest, read_records, write_export
from trainer.contract.records import Record

ROOT = Path(__file__).resolve().parent.parent


class Failing(StrEnum):
    """What is wrong with a reasoning."""

    OVERLOOKS = "overlooks"
    """Candidates with a faint defect are described as if they had none, and called fine."""
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
    directory: Path,
    *,
    seed: int,
    train: int,
    validation: int,
    test: int,
    hardness: float,
    imperfect: float,
    overlooked: float,
) -> int:
    """An export of drawn scenes at `directory`; an exit code.

    Of its train reasonings a share `overlooked` of those about faint defects overlooks them, and of the others a share
    `imperfect` fails otherwise. Shares are from 0 to 1.
    """
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
            records=(spoilt(record, imperfect, overlooked, hardness) for record in read_records(drawn)),
            polarity=manifest.polarity,
            prompt_versions=manifest.prompt_versions,
            image_source=lambda path: drawn / path,
            about={**manifest.about, "imperfect": imperfect, "overlooked": overlooked},
        )
    return 0


def spoilt(record: Record, imperfect: float, overlooked: float, hardness: float) -> Record:
    """The record, with a failing in its reasoning if its lot says so; the failing is named in its meta."""
    if record.split is not Split.TRAIN:
        return record
    dice = random.Random(f"imperfect {record.id}")
    by_lot = dice.random()
    faint = _with_faint_defects(record)
    if faint and by_lot < overlooked:
        return _failing(record, Failing.OVERLOOKS, _overlooking(record, faint, hardness))
    if faint or by_lot >= imperfect:
        return record
    failing = dice.choice([Failing.CONTRADICTS, Failing.CURT, Failing.STOCK])
    said = record.rationale
    match failing:
        case Failing.CONTRADICTS:
            said = _contradicting(said, dice)
        case Failing.CURT:
            said = "".join(_LISTS.findall(said))
        case Failing.STOCK:
            said = "One must look at each candidate as a whole, and compare it with the original."
    return _failing(record, failing, said)


def _failing(record: Record, failing: Failing, said: str) -> Record:
    return replace(record, rationale=said, meta={**record.meta, "failing": failing.value})


def _with_faint_defects(record: Record) -> list[int]:
    """Places of the candidates whose defect in the record's own dimension is faint."""
    levels = [found.get(record.dimension.value) for found in record.meta["levels"]]
    return [place for place, level in enumerate(levels) if level is not None and level <= FAINT[1]]


def _overlooking(record: Record, faint: list[int], hardness: float) -> str:
    """What is written by somebody who sees nothing wrong with these candidates."""
    drawn = describe_sample(int(record.sample_id.rpartition("-")[2]), hardness)
    scenes, defects = list(drawn.scenes), list(drawn.defects)
    for place in faint:
        defects[place] = {name: one for name, one in defects[place].items() if name != record.dimension}
        if record.dimension == APPEARANCE:
            scenes[place] = replace(scenes[place], product=drawn.original_scene.product)
    return rationale(record.dimension, drawn.original_scene.product, scenes, defects)


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
