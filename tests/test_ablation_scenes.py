"""Scenes to ablate on: bad reasonings among what is learnt from, and right answers and clean tests all the same."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablation_scenes import Failing, draw_scenes
from fixtures.defects import FAINT
from trainer.contract.answers import format_answer
from trainer.contract.dimensions import Split
from trainer.contract.exports import read_records, verify_export


def test_a_share_of_train_reasonings_fails_and_nothing_else(tmp_path: Path) -> None:
    sizes = {"train": 12, "validation": 1, "test": 2}
    for name, share in (("clean", 0.0), ("bad", 0.6)):
        overlooked = 0.9 if share else 0.0
        drawn = draw_scenes(tmp_path / name, seed=7, hardness=0.3, imperfect=share, overlooked=overlooked, **sizes)
        assert drawn == 0
        verify_export(tmp_path / name)
    pairs = list(zip(read_records(tmp_path / "clean"), read_records(tmp_path / "bad"), strict=True))
    assert all((a.id, a.answer, a.images) == (b.id, b.answer, b.images) for a, b in pairs)
    changed = [(a, b) for a, b in pairs if a.rationale != b.rationale]
    assert {b.split for _, b in changed} == {Split.TRAIN}
    assert 0.35 * 48 < len(changed) < 0.85 * 48
    assert {b.meta["failing"] for _, b in changed} == set(Failing)
    for before, after in changed:
        if after.meta["failing"] == Failing.OVERLOOKS:
            faint = [found.get(after.dimension, 1.0) <= FAINT[1] for found in after.meta["levels"]]
            assert any(faint)
            # What is plain is still called flawed, what is faint is not.
            assert after.rationale.count(", flawed.") == before.rationale.count(", flawed.") - sum(faint)
            continue
        fine = after.rationale.partition("Fine: ")[2].partition(".")[0].replace(", ", ",")
        if after.meta["failing"] == Failing.CONTRADICTS:
            assert fine != format_answer(before.answer)
            assert after.rationale.count(", flawed.") != before.rationale.count(", flawed.")
        elif after.meta["failing"] == Failing.CURT:
            assert fine == format_answer(before.answer)
            assert before.rationale.endswith(after.rationale)
