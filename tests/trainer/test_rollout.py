"""Decoding many packed branches together writes what decoding each alone, by full forwards, writes."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from tests.trainer.conftest import random_images
from trainer import decoding
from trainer.contract import prompts
from trainer.contract.dimensions import DIMENSIONS, Polarity
from trainer.contract.prompts import Prompt
from trainer.data import encode_prompts
from trainer.images import ImageTensor
from trainer.model import Architecture, Screener
from trainer.rollout import Decoding, Sampling, Wanted, Written, generate, threads_to_write, write_completions
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs

GREEDY = Sampling(max_new_tokens=12)
DRAWN = Sampling(max_new_tokens=12, temperature=1.0, seed=3)


def ask(dimension: int, count: int) -> Prompt:
    return prompts.ask(DIMENSIONS[dimension], Polarity.ACCEPTABLE, count)


def two_samples() -> tuple[list[Prompt], list[list[ImageTensor]]]:
    """Five questions about two samples of different candidate counts, in mixed order: different prompt lengths."""
    large, small = random_images(5, seed=1), random_images(3, seed=2)
    asked = [(0, large), (1, small), (2, large), (3, small), (3, large)]
    return [ask(dimension, len(images) - 1) for dimension, images in asked], [images for _, images in asked]


def naive(screener: Screener, prompt: Prompt, images: list[ImageTensor], length: int) -> list[int]:
    """Greedy words by one full forward per word; the model finds its own positions."""
    batch = encode_prompts(screener, [prompt], [images])
    ids = batch.input_ids
    for _ in range(length):
        kinds = {"mm_token_type_ids": (ids == screener.image_token_id).int()}
        with torch.no_grad():
            logits = screener.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_cache=False,
                **({} if screener.architecture is Architecture.INTERNVL else kinds),
                **batch.image_inputs(),
            ).logits[0, -1]
        logits[screener.banned_token_ids] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        if int(ids[0, -1]) == screener.end_token_id:
            break
    return ids[0, batch.input_ids.shape[1] :].tolist()


def encourage_ending(screener: Screener) -> None:
    """Random weights hardly ever end: give the ending token about a fifth of the probability after a prompt."""
    asked, images = two_samples()
    with torch.no_grad():
        inputs = encode_prompts(screener, asked[:1], images[:1]).model_inputs()
        hidden = screener.model.model(**inputs).last_hidden_state[0, -1]
        weight = screener.model.get_output_embeddings().weight
        weight[screener.end_token_id] = hidden / hidden.square().sum() * (math.log(len(weight)) - 1.4)


@pytest.mark.parametrize("joined", [True, False])
def test_greedy_equals_the_naive_decode(any_screener: Screener, monkeypatch: pytest.MonkeyPatch, joined: bool) -> None:
    if not joined:  # as in every model that is not small
        monkeypatch.setattr(decoding, "_JOINED", 0)
    asked, images = two_samples()
    endless = [naive(any_screener, prompt, own, 12) for prompt, own in zip(asked, images, strict=True)]
    # A word that one completion says along its way shall end it: branches then finish at different times.
    any_screener.tokenizer.eos_token = any_screener.tokenizer.convert_ids_to_tokens(endless[0][4])
    expected = [naive(any_screener, prompt, own, 12) for prompt, own in zip(asked, images, strict=True)]
    assert len(expected[0]) <= 5
    shared = generate(any_screener, asked, images, GREEDY)
    assert [list(one.token_ids) for (one,) in shared] == expected
    repeated = generate(any_screener, asked, images, GREEDY, num_generations=3)
    assert [[list(one.token_ids) for one in group] for group in repeated] == [[ids] * 3 for ids in expected]
    assert [one.finished for (one,) in shared] == [ids[-1] == any_screener.end_token_id for ids in expected]


@pytest.mark.parametrize("joined", [True, False])
def test_sixteen_bits_under_autocast_stay_near_single_precision(
    screener: Screener, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    asked, images = two_samples()
    exact = generate(screener, asked, images, DRAWN, num_generations=2)
    if not joined:
        monkeypatch.setattr(decoding, "_JOINED", 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = generate(screener, asked, images, DRAWN, num_generations=2)
    pairs = [pair for two in zip(exact, rough, strict=True) for pair in zip(*two, strict=True)]
    # The first words come from the same draws; eight bits of mantissa move their log-probabilities a little.
    gaps = [abs(one.logprobs[0] - other.logprobs[0]) for one, other in pairs if one.token_ids[0] == other.token_ids[0]]
    assert len(gaps) > len(pairs) / 2
    assert 0 < max(gaps) < 0.1


def test_logprobs_equal_those_of_the_training_forward(any_screener: Screener) -> None:
    encourage_ending(any_screener)
    asked, images = two_samples()
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=1)
    groups = generate(any_screener, asked, images, sampling, num_generations=4)
    branches = [[Branch([], one.token_ids) for one in group] for group in groups]
    heads = encode_prompts(any_screener, asked, images)
    with torch.no_grad():
        scored = completion_logprobs(any_screener, PrefixGroups(heads, branches), temperature=0.7)
    written = [one for group in groups for one in group]
    assert len({one.token_ids for one in written}) >= 5
    assert len({len(one.token_ids) for one in written}) > 1
    for one, logprobs_C in zip(written, scored.logprobs, strict=True):
        assert torch.allclose(torch.tensor(one.logprobs), logprobs_C[: len(one.logprobs)], atol=1e-5)


def test_a_draw_does_not_depend_on_what_it_is_decoded_with(screener: Screener) -> None:
    encourage_ending(screener)
    asked, images = two_samples()
    together = generate(screener, asked, images, DRAWN, num_generations=3)
    assert generate(screener, asked, images, DRAWN, num_generations=3) == together
    heads = encode_prompts(screener, asked[:1], images[:1])
    seed = Sampling(max_new_tokens=12, temperature=1.0, seed=3 * 1_000_003 + 1)
    (alone,) = write_completions(screener, heads, [[Wanted([], seed)]])
    assert alone.token_ids == together[0][1].token_ids


def first_words(screener: Screener, sampling: Sampling, draws: int) -> Counter[int]:
    asked, images = two_samples()
    heads = encode_prompts(screener, asked[:1], images[:1])
    settings = [
        Sampling(max_new_tokens=1, temperature=sampling.temperature, top_p=sampling.top_p, seed=n) for n in range(draws)
    ]
    written = write_completions(screener, heads, [[Wanted([], one) for one in settings]])
    return Counter(one.token_ids[0] for one in written)


def first_probabilities(screener: Screener, temperature: float) -> torch.Tensor:
    asked, images = two_samples()
    with torch.no_grad():
        logits = screener.model(**encode_prompts(screener, asked[:1], images[:1]).model_inputs()).logits[0, -1]
    logits[screener.banned_token_ids] = -torch.inf
    probabilities: torch.Tensor = (logits / temperature).softmax(-1)
    return probabilities


def test_words_are_drawn_as_often_as_they_are_likely(screener: Screener) -> None:
    encourage_ending(screener)
    probabilities = first_probabilities(screener, 0.5)
    drawn = first_words(screener, Sampling(max_new_tokens=1, temperature=0.5), 2000)
    for token, p in sorted(enumerate(probabilities.tolist()), key=lambda pair: -pair[1])[:5]:
        assert drawn[token] / 2000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 2000))
    assert not set(drawn) & set(screener.banned_token_ids)


def test_top_p_draws_among_the_likeliest_words_only(screener: Screener) -> None:
    encourage_ending(screener)
    ordered, order = first_probabilities(screener, 1.0).sort(descending=True)
    kept = int((ordered.cumsum(0) - ordered < 0.3).sum())
    drawn = first_words(screener, Sampling(max_new_tokens=1, temperature=1.0, top_p=0.3), 600)
    assert set(drawn) <= set(order[:kept].tolist())
    assert len(drawn) > 1


def test_each_completion_is_reported_when_it_is_done(screener: Screener) -> None:
    asked, images = two_samples()
    heads = encode_prompts(screener, asked[:2], images[:2])
    wanted = [[Wanted([], Sampling(max_new_tokens=n)) for n in lengths] for lengths in ([5, 2], [3])]
    told: list[tuple[int, Written]] = []
    written = write_completions(screener, heads, wanted, lambda index, one: told.append((index, one)))
    assert [index for index, _ in told] == [1, 2, 0]
    assert [written[index] for index, _ in told] == [one for _, one in told]
    assert [len(one.token_ids) for one in written] == [5, 2, 3]


def test_mixed_questions_are_refused(screener: Screener) -> None:
    asked, images = two_samples()
    heads = encode_prompts(screener, asked[:1], images[:1])
    with pytest.raises(ValueError, match="a question or none"):
        write_completions(screener, heads, [[Wanted([], GREEDY), Wanted([5], GREEDY)]])


def test_heads_that_join_on_the_way_write_what_they_write_alone(any_screener: Screener) -> None:
    encourage_ending(any_screener)
    asked, images = two_samples()
    heads = [encode_prompts(any_screener, [asked[n]], [images[n]]) for n in range(4)]
    wanted = [
        [Wanted([], Sampling(max_new_tokens=12, temperature=1.0, seed=7 * n + m)) for m in range(3)] for n in range(4)
    ]
    alone = [write_completions(any_screener, head, [wants]) for head, wants in zip(heads, wanted, strict=True)]
    decoding = Decoding(any_screener)
    branches = decoding.join(heads[0], wanted[:1])
    for number in (1, 2, 3):
        decoding.step()
        decoding.step()
        branches += decoding.join(heads[number], wanted[number : number + 1])
    while decoding.step():
        pass
    expected = [one for group in alone for one in group]
    assert len({len(one.token_ids) for one in expected}) > 2
    assert [branch.as_written(any_screener).token_ids for branch in branches] == [one.token_ids for one in expected]
    for branch, one in zip(branches, expected, strict=True):
        assert branch.logprobs == pytest.approx(one.logprobs, abs=1e-4)


def test_a_branch_that_leaves_changes_nothing_for_the_others(screener: Screener) -> None:
    asked, images = two_samples()
    heads = encode_prompts(screener, asked[:2], images[:2])
    wanted = [[Wanted([], GREEDY), Wanted([], Sampling(max_new_tokens=12, temperature=1.0, seed=1))]] * 2
    expected = write_completions(screener, heads, wanted)
    decoding = Decoding(screener)
    branches = decoding.join(heads, wanted)
    decoding.step()
    for place in (0, 1):  # the whole first row, which then leaves too
        decoding.leave(branches[place])
    late = decoding.join(heads, wanted)
    while decoding.step():
        pass
    assert [branch.tokens for branch in branches[2:]] == [list(one.token_ids) for one in expected[2:]]
    assert [branch.tokens for branch in late] == [list(one.token_ids) for one in expected]
    assert len(branches[0].tokens) == 2


def test_joining_that_fails_leaves_the_others_as_they_were(screener: Screener) -> None:
    asked, images = two_samples()
    heads = encode_prompts(screener, asked[:1], images[:1])
    (expected,) = write_completions(screener, heads, [[Wanted([], GREEDY)]])
    decoding = Decoding(screener)
    (branch,) = decoding.join(heads, [[Wanted([], GREEDY)]])
    with pytest.raises(ValueError, match="a question or none"):
        decoding.join(heads, [[]])
    while decoding.step():
        pass
    assert branch.as_written(screener).token_ids == expected.token_ids


def test_likelihoods_are_those_of_temperature_1(screener: Screener) -> None:
    asked, images = two_samples()
    heads = encode_prompts(screener, asked[:1], images[:1])
    decoding = Decoding(screener)
    warm = Sampling(max_new_tokens=4, temperature=0.5, seed=2)
    told, untold = decoding.join(heads, [[Wanted([], warm, alternatives=3), Wanted([], warm)]])
    while decoding.step():
        pass
    assert told.tokens == untold.tokens
    assert untold.likelihoods == []
    rows = encode_prompts(screener, asked[:1], images[:1])
    with torch.no_grad():
        scored = completion_logprobs(screener, PrefixGroups(rows, [[Branch([], told.tokens)]]), temperature=1.0)
    own = [likelihood.logprob for likelihood in told.likelihoods]
    assert own == pytest.approx(scored.logprobs[0].tolist(), abs=1e-5)
    assert own != pytest.approx(told.logprobs, abs=1e-2)
    for likelihood in told.likelihoods:
        values = [logprob for _, logprob in likelihood.alternatives]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)


def test_a_small_model_writes_in_one_thread_unless_heads_are_long(screener: Screener) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_to_write(screener, 300):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with threads_to_write(screener, 300_000):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
