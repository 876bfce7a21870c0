"""Only models that are understood are opened; a new one speaks the contract in few tokens."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import TEXTS, make_screener, model_directory, random_images
from trainer.contract import prompts
from trainer.contract.answers import format_completion
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity
from trainer.data import completion_ids, encode_prompts, plain_text, question_ids, token_ids
from trainer.model import ModelRefused, Screener, load_screener, new_screener, save_screener
from trainer.tokenizer import train_tokenizer

LINEAR = ["full_attention", "linear_attention"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported"),
        (None, "config.json is missing"),
        ({"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 2, "layer_types": LINEAR}}, "linear"),
        ({"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 9, "layer_types": LINEAR}}, "must be equal"),
        ({"model_type": "qwen2_5_vl", "text_config": {"use_sliding_window": True, "max_window_layers": 0}}, "sliding"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, config: dict[str, object] | None, said: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelRefused) as refused:
        new_screener(tmp_path, TEXTS, seed=0)
    assert said in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_without_weights_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="expected weights"):
        load_screener(model_directory(tmp_path / "new", "qwen3_vl"))


def test_weights_that_were_cut_short_are_refused(screener: Screener, tmp_path: Path) -> None:
    save_screener(screener, tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelRefused, match="saved: the weights cannot be loaded"):
        load_screener(tmp_path / "saved", "cpu")


def test_no_cache_keeps_a_model_in_memory(tmp_path: Path) -> None:
    made = make_screener(tmp_path)
    asked = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4)
    first = encode_prompts(made, [asked], [random_images(5)])
    assert torch.equal(encode_prompts(made, [asked], [random_images(5)]).input_ids, first.input_ids)
    model = weakref.ref(made.model)
    del made
    gc.collect()
    assert model() is None


def test_one_seed_gives_one_model(tmp_path: Path) -> None:
    first, again, other = (make_screener(tmp_path / str(n), seed=seed) for n, seed in enumerate((3, 3, 4)))
    assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


def test_head_and_question_join_to_the_template(any_screener: Screener) -> None:
    ask = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4)
    text = any_screener.tokenizer.apply_chat_template(
        prompts.template_messages(ask), add_generation_prompt=True, tokenize=False
    )
    opening, patch, closing = any_screener.image_marks
    text = text.replace(any_screener.image_placeholder, opening + patch * 4 + closing)
    images = [[torch.zeros(16, 16, 3, dtype=torch.uint8)] * 5]
    whole = encode_prompts(any_screener, [ask], images)
    head = encode_prompts(any_screener, [ask], images, head_only=True)
    assert whole.input_ids[0].tolist() == token_ids(any_screener, text)
    assert head.input_ids[0].tolist() + question_ids(any_screener, ask) == whole.input_ids[0].tolist()


def test_a_rationale_cannot_pose_as_an_image_or_end_the_turn(any_screener: Screener) -> None:
    opening, patch, _ = any_screener.image_marks
    ids = completion_ids(any_screener, f"{opening}{patch}<|im_end|>")
    assert any_screener.image_token_id not in ids
    assert ids.count(any_screener.end_token_id) == 1
    assert patch not in plain_text(any_screener, patch)


def test_a_new_tokenizer_is_short_and_keeps_letters_apart() -> None:
    questions = [prompts.ask(dimension, Polarity.ACCEPTABLE, 4).question for dimension in DIMENSIONS]
    said = format_completion("A: shadow is detached. B: looks right.", frozenset("AB"))
    tokenizer = train_tokenizer([*questions * 4, said] * 3, 1200)
    for question in questions:
        assert len(tokenizer.encode(question)) <= 8
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(said))
    assert tokens.count("A") == 2
    assert tokens[-5:] == ["<answer>", "A", ",", "B", "</answer>"]
    assert tokens[0] == "<think>"


def test_a_new_tokenizer_writes_anything() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    text = "Schön — 影 🙂 \x00 <think>A,C</think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="vocab_size"):
        new_screener(model_directory(tmp_path, "qwen3_vl", vocab_size=100), TEXTS, seed=0)


def test_a_chat_template_without_images_is_refused(any_screener: Screener) -> None:
    any_screener.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ModelRefused, match="chat template"):
        question_ids(any_screener, prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4))
