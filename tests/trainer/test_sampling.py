"""What remains to be drawn from is what transformers' own processors leave, in their order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trainer.sampling import Chooser, Sampling

WORDS, BANNED, PROMPT, DRAWS = 24, [3, 7], [1, 5, 5, 9], 6000
CPU = torch.device("cpu")


def logits() -> Tensor:
    return torch.randn(WORDS, generator=torch.Generator().manual_seed(2)) * 2


def wanted(fields: dict[str, Any]) -> Tensor:
    """Probabilities by transformers' own processors."""
    prompt = torch.tensor([PROMPT])
    chain = LogitsProcessorList()
    if "repetition_penalty" in fields:
        chain.append(RepetitionPenaltyLogitsProcessor(fields["repetition_penalty"]))
    chain.append(SuppressTokensLogitsProcessor(BANNED))
    chain.append(TemperatureLogitsWarper(0.8))
    if "top_k" in fields:
        chain.append(TopKLogitsWarper(fields["top_k"]))
    if "top_p" in fields:
        chain.append(TopPLogitsWarper(fields["top_p"]))
    if "min_p" in fields:
        chain.append(MinPLogitsWarper(fields["min_p"]))
    probabilities: Tensor = chain(prompt, logits()[None].clone())[0].softmax(-1)
    return probabilities


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"repetition_penalty": 1.6},
        {"repetition_penalty": 0.5, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
    ],
)
def test_words_are_drawn_as_transformers_would(fields: dict[str, Any]) -> None:
    samplings = [Sampling(max_new_tokens=1, temperature=0.8, seed=n, **fields) for n in range(DRAWS)]
    chooser = Chooser(samplings, [PROMPT] * DRAWS, BANNED, WORDS, CPU)
    drawn, logprobs = chooser.choose(logits().expand(DRAWS, -1))
    expected = wanted(fields)
    counts = Counter(drawn)
    assert set(counts) <= set(expected.nonzero()[:, 0].tolist())
    for word, p in enumerate(expected.tolist()):
        assert counts[word] / DRAWS == pytest.approx(p, abs=4.5 * (p * (1 - p) / DRAWS) ** 0.5 + 1e-9)
    plain = (logits() / 0.8).log_softmax(-1)
    assert logprobs == pytest.approx(plain[torch.tensor(drawn)].tolist(), abs=1e-5)


def test_a_words_own_completion_counts_as_repetition() -> None:
    sampling = Sampling(max_new_tokens=3, repetition_penalty=4.0)
    chooser = Chooser([sampling], [[]], [], WORDS, CPU)
    rising = torch.linspace(1.0, 2.0, WORDS)[None]
    said = [chooser.choose(rising)[0][0] for _ in range(3)]
    assert said == [WORDS - 1, WORDS - 2, WORDS - 3]


def test_branches_that_stay_or_come_later_keep_their_own_draws() -> None:
    hot = [Sampling(max_new_tokens=4, temperature=1.0, seed=n) for n in range(3)]
    flat = torch.zeros(1, WORDS)

    def alone(sampling: Sampling) -> list[int]:
        chooser = Chooser([sampling], [[]], [], WORDS, CPU)
        return [chooser.choose(flat)[0][0] for _ in range(4)]

    together = Chooser(hot[:2], [[], []], [], WORDS, CPU)
    first = together.choose(flat.expand(2, -1))[0]
    together.keep([1])
    together.take_in(Chooser(hot[2:], [[]], [], WORDS, CPU))
    later = [together.choose(flat.expand(2, -1))[0] for _ in range(3)]
    assert [first[1], *(words[0] for words in later)] == alone(hot[1])
    assert [words[1] for words in later] == alone(hot[2])[:3]


def test_the_largest_draw_there_is_meets_the_last_word_that_may_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda size, generator: torch.full((size,), 1 - 2**-24))
    hot = [Sampling(max_new_tokens=1, temperature=1.0, seed=n) for n in range(500)]
    chooser = Chooser(hot, [[]] * 500, [WORDS - 1], WORDS, CPU)
    many = torch.randn(500, WORDS, generator=torch.Generator().manual_seed(4))
    assert chooser.choose(many)[0] == [WORDS - 2] * 500


@pytest.mark.parametrize("fields", [{"top_k": -1}, {"min_p": 1.5}, {"repetition_penalty": 0.0}, {"top_p": 0.0}])
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Sampling(max_new_tokens=1, **fields)
