"""Bootstrap intervals: they contain the truth as often as they say, and samples are drawn whole."""

import random

import numpy as np
import pytest

from trainer.statistics import mean_interval, nested_interval


def test_the_interval_of_independent_values_is_the_textbook_one() -> None:
    rng = random.Random(1)
    values = [float(rng.random() < 0.3) for _ in range(600)]
    interval = mean_interval(values, [str(index) for index in range(600)])
    mean = sum(values) / 600
    half_width = 1.96 * (mean * (1 - mean) / 600) ** 0.5
    assert interval.value == pytest.approx(mean)
    assert interval.low == pytest.approx(mean - half_width, abs=0.006)
    assert interval.high == pytest.approx(mean + half_width, abs=0.006)


def test_records_of_one_sample_are_drawn_together() -> None:
    """Four equal records per sample hold no more information than one: the interval must not shrink."""
    rng = random.Random(2)
    values = [float(rng.random() < 0.5) for _ in range(150)]
    alone = mean_interval(values, [str(index) for index in range(150)])
    fourfold = mean_interval([v for v in values for _ in range(4)], [str(i) for i in range(150) for _ in range(4)])
    assert fourfold.high - fourfold.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert fourfold.value == alone.value


def test_the_naive_bootstrap_gives_the_same_interval() -> None:
    rng = random.Random(3)
    samples = [f"s{rng.randrange(40)}" for _ in range(100)]
    values = [rng.random() for _ in samples]
    members: dict[str, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        members.setdefault(sample, []).append(value)
    means = []
    for _ in range(4000):
        drawn = [value for name in rng.choices(list(members), k=len(members)) for value in members[name]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    interval = mean_interval(values, samples)
    assert interval.low == pytest.approx(means[100], abs=0.01)
    assert interval.high == pytest.approx(means[3900], abs=0.01)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(4)
    covered = 0
    for trial in range(200):
        values = [float(rng.random() < 0.7) for _ in range(80)]
        interval = mean_interval(values, [str(i) for i in range(80)], resamples=300, seed=trial)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="one sample name per value"):
        mean_interval([], [])


def test_an_interval_over_runs_weighs_runs_alike_and_covers_their_spread() -> None:
    samples = [f"s{index}" for index in range(40)]
    low, high = [0.2] * 40, [0.8] * 40
    found = nested_interval([(low, samples), (high, samples)])
    assert found.value == pytest.approx(0.5)
    # Both draws of two runs may be the same run.
    assert found.low == pytest.approx(0.2)
    assert found.high == pytest.approx(0.8)
    of_other_sizes = nested_interval([([0.0] * 10, samples[:10]), (high, samples)])
    assert of_other_sizes.value == pytest.approx(0.4)


def test_runs_judged_on_the_same_samples_share_their_luck() -> None:
    rng = np.random.default_rng(0)
    values = list(rng.random(60))
    samples = [f"s{index}" for index in range(60)]
    alone = mean_interval(values, samples)
    same = nested_interval([(values, samples)] * 4)
    others = nested_interval([(values, [f"{run}/{name}" for name in samples]) for run in range(4)])
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.02)
    assert others.high - others.low == pytest.approx((alone.high - alone.low) / 2, rel=0.15)
    with pytest.raises(ValueError, match="at least one"):
        nested_interval([])
