"""Hard cases: each rule of docs/design.md against its naive formula, and the same draws after a restart."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract.answers import format_completion
from trainer.contract.scores import Grade, RewardWeights, grade
from trainer.hard_cases import Draw, HardCaseConfig, HardCaseMode, HardCases, RecordClass, ReviewReason

GOLD = frozenset("AC")
OTHER = frozenset("B")


def say(answer: frozenset[str] | None) -> Grade:
    text = "no answer" if answer is None else format_completion("seen", answer)
    return grade(text, GOLD, 4, RewardWeights())


def group(exact: int, of: int = 8, wrong: frozenset[str] | None = OTHER) -> list[Grade]:
    return [say(GOLD)] * exact + [say(wrong)] * (of - exact)


def make(records: int = 8, seed: int = 0, **fields: Any) -> HardCases:
    standing = {f"r{index}": GOLD for index in range(records)}
    return HardCases(standing, HardCaseConfig(**fields), seed)


def naive_class(rates: list[float]) -> tuple[float, RecordClass]:
    """The rules read aloud, from the list of a record's exact rates."""
    if not rates:
        return 0.0, RecordClass.UNSEEN
    averages = [rates[0]]
    for rate in rates[1:]:
        averages.append(0.5 * averages[-1] + 0.5 * rate)
    p = averages[-1]
    if not any(rates):
        return p, RecordClass.PARKED if len(rates) >= 3 else RecordClass.COLD
    if len(averages) >= 2 and min(averages[-2:]) >= 0.9:
        return p, RecordClass.SOLVED
    return p, RecordClass.HARD if p <= 0.5 else RecordClass.LEARNING


@given(st.lists(st.integers(0, 8), max_size=12))
def test_a_record_is_classed_as_the_rules_read(exact_counts: list[int]) -> None:
    cases = make()
    for exact in exact_counts:
        cases.observe("r3", group(exact))
    p, kind = naive_class([exact / 8 for exact in exact_counts])
    assert cases.class_of("r3") is kind
    assert cases.history_of("r3").p == pytest.approx(p)
    assert cases.counts()[kind.value] >= 1
    assert sum(cases.counts().values()) == 8


@given(st.lists(st.sampled_from([GOLD, OTHER, frozenset("D"), frozenset(), None]), min_size=4, max_size=40))
def test_a_label_is_suspect_when_rollouts_of_a_parked_record_agree(said: list[frozenset[str] | None]) -> None:
    cases = make(records=1)
    visits = [said[start : start + 4] for start in range(0, len(said), 4)]
    for answers in visits:
        cases.observe("r0", [say(answer) for answer in answers])
    readable = Counter(answer for answer in said if answer is not None)
    expected = len(visits) >= 3 and GOLD not in said and max(readable.values(), default=0) >= 0.75 * len(said)
    parked = len(visits) >= 3 and GOLD not in said
    assert len(cases.for_review()) == parked
    if parked:
        (review,) = cases.for_review()
        assert (review.reason is ReviewReason.SUSPECT_LABEL) == expected
        assert (review.record_id, review.standing_answer, review.rollouts) == ("r0", "A,C", len(said))
        assert review.share == max(readable.values(), default=0) / len(said)
        assert (review.model_answer is None) == (not readable)


def test_everything_it_decides_is_told() -> None:
    cases = make(records=8)
    cases.take_decisions()
    cases.observe("r0", group(2))
    drawn = [cases.draw_batch(4) for _ in range(2)]
    told = cases.take_decisions()
    assert told[0] == {"decision": "moved", "record": "r0", "from": "unseen", "to": "hard", "p": 0.25, "visits": 1}
    batches = [row for row in told if row["decision"] == "batch"]
    assert [row["replay"] for row in batches] == [[d.record_id for d in batch if d.replay] for batch in drawn]
    assert [row["pass"] for row in batches] == [[d.record_id for d in batch if not d.replay] for batch in drawn]
    assert cases.take_decisions() == []


def test_a_solved_record_leaves_the_pool_and_its_rest_can_be_chosen() -> None:
    cases = make(records=4, rest_solved=True)
    cases.observe("r0", group(2))
    for _ in range(6):
        cases.observe("r0", group(8))
    assert cases.class_of("r0") is RecordClass.SOLVED
    cases.begin_stage()
    batch = [draw for _ in range(3) for draw in cases.draw_batch(1)]
    assert not any(draw.replay for draw in batch)
    assert {draw.record_id for draw in batch} == {"r1", "r2", "r3"}


def test_a_quarter_of_a_batch_comes_from_the_hard_pool_and_a_record_at_most_three_times_per_epoch() -> None:
    cases = make(records=400)
    for index in range(2):
        cases.observe(f"r{index}", group(2))
    replays: Counter[str] = Counter()
    for _ in range(20):
        batch = cases.draw_batch(8)
        assert len({draw.record_id for draw in batch}) == 8
        replays.update(draw.record_id for draw in batch if draw.replay)
        assert sum(draw.replay for draw in batch) <= 2
    assert cases.epoch == 0
    assert replays == {"r0": 3, "r1": 3}
    assert cases.replays_drawn == 6


def test_replays_are_allowed_again_in_the_next_epoch() -> None:
    cases = make(records=16)
    cases.observe("r0", group(2))
    seen = [[draw for draw in cases.draw_batch(8) if draw.replay] for _ in range(8)]
    assert cases.epoch >= 2
    assert sum(map(len, seen)) > 3


@settings(max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=30, max_size=30), st.integers(1, 16))
def test_only_hard_records_are_replayed(exact_counts: list[int], size: int) -> None:
    cases = make(records=30)
    for index, exact in enumerate(exact_counts):
        cases.observe(f"r{index}", group(exact))
    hard = {f"r{index}" for index, exact in enumerate(exact_counts) if 0 < exact <= 4}
    batch = cases.draw_batch(size)
    replayed = {draw.record_id for draw in batch if draw.replay}
    assert replayed <= hard
    assert len(replayed) == min(len(hard), int(size * 0.25 + 0.5))
    assert len(batch) == size


def test_the_hard_pool_is_drawn_in_proportion_to_one_minus_p() -> None:
    drawn: Counter[str] = Counter()
    for seed in range(3000):
        cases = make(records=40, seed=seed)
        cases.observe("r0", group(1))  # 1 - p = 7/8
        cases.observe("r1", group(4))  # 1 - p = 4/8
        drawn.update(draw.record_id for draw in cases.draw_batch(4) if draw.replay)
    # 3000 draws, expected share 7/11; three standard errors are 0.026
    assert drawn["r0"] / drawn.total() == pytest.approx(7 / 11, abs=0.027)


def test_a_parked_record_rests_online_and_a_cold_one_is_met_once_per_pass() -> None:
    cases = make(records=6)
    for _ in range(3):
        cases.observe("r0", group(0))
    cases.observe("r1", group(0))
    while cases.epoch == 0:
        cases.draw_batch(1)
    state = cases.state_dict()
    # The first draw of the pass is already gone: what is left and that one make the pass.
    assert 0 not in state["order"]
    assert len(state["order"]) == 4


def test_staged_mode_repeats_hard_records_and_tries_parked_ones_once() -> None:
    cases = make(records=5, mode=HardCaseMode.STAGED)
    cases.observe("r0", group(2))
    for _ in range(3):
        cases.observe("r1", group(0))
    drawn = Counter(cases.draw_batch(1)[0].record_id for _ in range(5))
    assert set(drawn.values()) == {1}
    stage = Counter(cases.draw_batch(1)[0].record_id for _ in range(6))
    assert stage == {"r0": 2, "r1": 1, "r2": 1, "r3": 1, "r4": 1}
    assert cases.epoch == 1
    assert cases.replays_drawn == 0


def test_without_hard_cases_every_record_is_met_once_per_pass() -> None:
    cases = make(records=5, mode=HardCaseMode.OFF)
    for _ in range(3):
        cases.observe("r0", group(0))
    cases.observe("r1", group(2))
    for _ in range(3):
        assert {draw.record_id for draw in cases.draw_batch(5)} == {f"r{index}" for index in range(5)}


def test_when_every_record_rests_all_are_tried_again() -> None:
    cases = make(records=2)
    for _ in range(3):
        cases.observe("r0", group(0))
        cases.observe("r1", group(0))
    drawn = [draw.record_id for _ in range(3) for draw in cases.draw_batch(2)]
    assert set(drawn) == {"r0", "r1"}


def play(cases: HardCases, rounds: int) -> list[list[Draw]]:
    """A trajectory whose outcomes depend on the record alone."""
    batches = []
    for _ in range(rounds):
        batch = cases.draw_batch(6)
        for draw in batch:
            cases.observe(draw.record_id, group(int(draw.record_id[1:]) % 9))
        batches.append(batch)
    return batches


@pytest.mark.parametrize("mode", list(HardCaseMode))
def test_a_restart_from_saved_state_draws_the_same(mode: HardCaseMode) -> None:
    whole = make(records=20, mode=mode)
    expected = play(whole, 12)
    first = make(records=20, mode=mode)
    before = play(first, 5)
    saved = json.loads(json.dumps(first.state_dict()))
    second = make(records=20, mode=mode, seed=99)
    second.load_state_dict(saved)
    assert before + play(second, 7) == expected
    assert second.state_dict() == whole.state_dict()


def test_state_of_other_records_is_refused() -> None:
    with pytest.raises(ValueError, match="other records"):
        make(records=3).load_state_dict(make(records=4).state_dict())


@pytest.mark.parametrize(
    "fields",
    [
        {"ema": 0.0},
        {"replay_share": 1.0},
        {"solved_at_least": 0.4},
        {"parked_visits": 0},
        {"max_replays_per_epoch": -1},
    ],
)
def test_wrong_settings_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        HardCaseConfig(**fields)
