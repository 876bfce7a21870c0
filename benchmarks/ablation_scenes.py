"""Drawn scenes to ablate on: what is to be learnt from has reasonings as they are in life, some of them bad.

``fixtures.scene_export`` draws; here train records get failings. Who writes reasonings overlooks most of what is faint
and calls it fine, and now and then writes badly whatever is seen. Answers stay right, as people accepted them: what the
cold start learns wrongly, reward can mend. Which record fails how follows from its id. Held-out scenes may have more
faint defects than those to learn from, so that both kinds are measured equally well. Not here: who learns
(ablation.py).
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
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


UNSEEN = frozenset({"mark_reshaped", "part_added"})
"""Appearance defects that the ablation's model never finds in 64 pixels, or hardly more often than not: none of 35
reshaped marks, 12 of 20 added parts (fixtures/local_screener, docs/log.md). What reward teaches there is luck."""
_HELD_OUT = 500
"""Added to the seed of what is learnt from: the seed of the held-out scenes."""
_PART = re.compile(r"(?P<letter>[A-H]): (?P<seen>.*?), (?P<verdict>fine|flawed)\.")
_LISTS = re.compile(r"Fine: .*$")
_OPPOSITE = {"fine": "flawed", "flawed": "fine"}


def draw_scenes(
    directory: Path,
    *,
    seed: int,
    counts: Mapping[Split, int],
    hardness: float,
    test_hardness: float,
    imperfect: float,
    overlooked: float,
    unseen: bool = False,
) -> int:
    """An export of drawn scenes at `directory`; an exit code.

    Faint defects are a share `hardness` of all, `test_hardness` in the test split. Of train reasonings about faint
    defects a share `overlooked` overlooks them, and of the others a share `imperfect` fails otherwise. Records with a
    defect of UNSEEN are left out, unless `unseen`. Shares are from 0 to 1.
    """
    learnt: dict[Split, int] = {split: count for split, count in counts.items() if split != Split.TEST}
    test: dict[Split, int] = {Split.TEST: counts[Split.TEST]}
    with tempfile.TemporaryDirectory() as scratch:
        drawn = [Path(scratch) / "learnt", Path(scratch) / "held-out"]
        for where, first, faint, splits in (
            (drawn[0], seed, hardness, learnt),
            (drawn[1], seed + _HELD_OUT, test_hardness, test),
        ):
            if code := _draw(where, first, faint, splits):
                return code
        manifest = read_manifest(drawn[0])
        records = [record for where in drawn for record in read_records(where) if unseen or not _has_unseen(record)]
        write_export(
            directory,
            records=(
                spoilt(record, imperfect, overlooked, hardness) for record in sorted(records, key=lambda one: one.id)
            ),
            polarity=manifest.polarity,
            prompt_versions=manifest.prompt_versions,
            image_source=lambda path: next(where / path for where in drawn if (where / path).exists()),
            about={
                **manifest.about,
                "test_hardness": test_hardness,
                "imperfect": imperfect,
                "overlooked": overlooked,
                "unseen": unseen,
            },
        )
    return 0


def _draw(directory: Path, seed: int, hardness: float, counts: Mapping[Split, int]) -> int:
    splits = [part for split, count in counts.items() for part in (f"--{split}", str(count))]
    command = [sys.executable, "-m", "fixtures.scene_export", str(directory), "--size", "64", "--seed", str(seed)]
    return subprocess.run([*command, "--hardness", str(hardness), *splits], cwd=ROOT, check=False).returncode


def _has_unseen(record: Record) -> bool:
    return any(found.get(record.dimension.value) in UNSEEN for found in record.meta["defects"])


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
