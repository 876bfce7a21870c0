"""Scenes to ablate on: bad reasonings among what is learnt from, and right answers and clean tests all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.ablation import _differs
from benchmarks.ablation_scenes import UNSEEN, Failing, draw_scenes
from fixtures.defects import APPEARANCE, FAINT
from trainer.contract.answers import format_answer
from trainer.contract.dimensions import Split
from trainer.contract.exports import read_records, verify_export


def test_a_share_of_train_reasonings_fails_and_nothing_else(tmp_path: Path) -> None:
    counts = {Split.TRAIN: 12, Split.VALIDATION: 1, Split.TEST: 2}
    for name, share in (("clean", 0.0), ("bad", 0.6)):
        overlooked = 0.9 if share else 0.0
        drawn = draw_scenes(
            tmp_path / name,
            seed=7,
            counts=counts,
            hardness=0.3,
            test_hardness=0.3,
            imperfect=share,
            overlooked=overlooked,
            unseen=True,
        )
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


def test_what_is_held_out_has_its_own_share_of_faint_defects_and_nothing_unseen(tmp_path: Path) -> None:
    counts = {Split.TRAIN: 12, Split.TEST: 12}
    none: dict[str, Any] = {"hardness": 0.0, "imperfect": 0.0, "overlooked": 0.0}
    assert draw_scenes(tmp_path / "drawn", seed=7, counts=counts, test_hardness=1.0, **none) == 0
    verify_export(tmp_path / "drawn")
    records = list(read_records(tmp_path / "drawn"))
    for record in records:
        levels = [found[record.dimension] for found in record.meta["levels"] if record.dimension in found]
        assert all((level <= FAINT[1]) == (record.split is Split.TEST) for level in levels)
        assert not UNSEEN & {found.get(record.dimension) for found in record.meta["defects"]}
    samples = [{record.sample_id for record in records if record.split is split} for split in counts]
    assert all(samples)
    assert not samples[0] & samples[1]
    # Only what nobody could learn is missing: the other dimensions are whole.
    assert sum(record.dimension != APPEARANCE for record in records) == 24 * 3
    assert 0 < sum(record.dimension == APPEARANCE for record in records) < 24


def test_a_home_is_gone_on_with_under_the_settings_it_was_made_with(tmp_path: Path) -> None:
    assert _differs(tmp_path / "home", {"train": 80, "hardness": 0.12}) == ""
    assert _differs(tmp_path / "home", {"train": 80, "hardness": 0.12}) == ""
    assert _differs(tmp_path / "home", {"train": 80, "hardness": 0.2, "unseen": True}) == "hardness, unseen"
