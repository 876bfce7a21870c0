"""The vision tower's own phase learns kinds of flaws, and to name what the records say an image shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import MakeExport
from trainer.contract.dimensions import Dimension, Split
from trainer.contract.records import Record
from trainer.data import group_by_sample, read_split
from trainer.images import ImageStore
from trainer.model import Screener
from trainer.optimization import Budget
from trainer.vision_warmup import VisionWarmupConfig, candidate_kinds, trait_values, warm_up

SHADOW = (Dimension.PHYSICAL_SHADOW,)


@pytest.fixture
def export(make_export: MakeExport) -> Path:
    return make_export(samples=24, dimensions=SHADOW)


def colours(record: Record) -> list[dict[str, str]]:
    """The traits of the original and the candidates, from a rationale such as "A: green. B: red."."""
    said = record.rationale.replace(".", "").split()[1::2]
    return [{"colour": "grey"}, *({"colour": colour} for colour in said)]


def losses(screener: Screener, export: Path, records: list[Record], **config: Any) -> list[float]:
    found: list[float] = []

    def on_step(budget: Budget, figures: dict[str, float]) -> bool:
        found.append(figures["loss"])
        return False

    warm_up(
        screener,
        group_by_sample(records),
        ImageStore(screener, export),
        VisionWarmupConfig(**{"steps": 60, "batch_samples": 8, **config}),
        seed=0,
        mirrored=False,
        on_step=on_step,
    )
    return found


def test_it_learns_to_name_what_images_show(screener: Screener, export: Path) -> None:
    # Every answer is the same, so that only naming is left to learn.
    records = read_split(export, Split.TRAIN, SHADOW, None)
    told = [replace(record, answer=frozenset("AB"), meta={"traits": colours(record)}) for record in records]
    with_names = losses(screener, export, told, naming_weight=10.0)
    assert sum(with_names[-5:]) < 0.5 * sum(with_names[:5])


def test_a_tower_that_is_frozen_afterwards_learns_meanwhile(any_screener: Screener, export: Path) -> None:
    tower = any_screener.vision_tower.requires_grad_(False)
    before = [weight.detach().clone() for weight in tower.parameters()]
    records = read_split(export, Split.TRAIN, SHADOW, None)
    losses(any_screener, export, records, steps=2)
    assert any(not torch.equal(now, then) for now, then in zip(tower.parameters(), before, strict=True))
    assert not any(weight.requires_grad for weight in tower.parameters())


def test_traits_that_do_not_fit_the_images_are_left_out(screener: Screener, export: Path) -> None:
    records = read_split(export, Split.TRAIN, SHADOW, None)
    for traits in (None, "red", [{"colour": "red"}], [None] * 5):
        untold = [replace(record, meta={"traits": traits}) for record in records]
        assert losses(screener, export, untold)[0] > 0


def test_values_of_traits_are_collected_from_all_images() -> None:
    samples = [[{"ink": "red"}, {"ink": "blue", "part": "there"}], [{}, {"part": "absent"}]]
    assert trait_values(samples) == {"ink": ["blue", "red"], "part": ["absent", "there"]}


def test_kinds_come_from_the_records_where_they_are_told(export: Path) -> None:
    record = replace(read_split(export, Split.TRAIN, SHADOW, None)[0], answer=frozenset("AC"))
    assert candidate_kinds(record) == [None, "flawed", None, "flawed"]
    named = replace(record, meta={"defects": [{}, {"physical_shadow": "missing"}, {}, {}]})
    assert candidate_kinds(named) == [None, "missing", None, "flawed"]
