"""Evaluation: of a model directory from start to end, of an endpoint, and the comparisons made of predictions."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer.conftest import make_screener
from trainer import endpoint, evaluate
from trainer.config import ConfigRefused, Refused
from trainer.contract.answers import Answer, format_completion
from trainer.contract.dimensions import Dimension, Polarity, Split
from trainer.contract.exports import read_records
from trainer.contract.prompts import ask
from trainer.contract.scores import RewardWeights, ScoreVariant, all_answers, chance_levels, grade
from trainer.endpoint import EndpointConfig, EndpointFailed
from trainer.evaluate import Contaminated, EvaluateConfig, beats_constant, paired_difference
from trainer.model import save_screener
from trainer.predictions import Answered, Prediction, predict, read_predictions


def config(export: Path, tmp_path: Path, **fields: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "export_dir": export,
        "run_dir": tmp_path / "evaluation",
        "split": Split.VALIDATION,
        "max_completion_length": 8,
        "resamples": 100,
        "device": "cpu",
    }
    return EvaluateConfig(**settings | fields)


def test_a_model_directory_is_evaluated_from_start_to_end(
    make_export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = make_export(samples=8)
    save_screener(make_screener(tmp_path / "new"), tmp_path / "first" / "model")
    evaluate.main(config(export, tmp_path, model_dir=tmp_path / "first"))
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    predictions = read_predictions(tmp_path / "evaluation" / "predictions.jsonl")
    assert (report["records"], report["samples"]) == (8, 2)
    assert [one.record_id for one in predictions] == [one.id for one in read_records(export, Split.VALIDATION)]
    assert set(report["figures"]) == {one.dimension for one in predictions} | {"overall"}
    assert report["parsable"] == 1 - sum(report["refusals"].values()) / 8
    assert report["images_trained_on"]["count"] == 0
    assert "readable 0.0% (refused: " in printed
    assert len(printed.splitlines()) == 9
    assert (tmp_path / "evaluation" / "evaluation.md").read_text().startswith("# first\n")


class Oracle:
    """An endpoint that knows every answer but those about `wrong` records, in place of the network."""

    def __init__(self, export: Path, wrong: int) -> None:
        records = list(read_records(export))
        self.answers = {
            endpoint.data_uri(record.original.path, (export / record.original.path).read_bytes()): record.answer
            for record in records[wrong:]
        }

    def __call__(self, config: EndpointConfig, prompt: object, images: list[str], **_: object) -> Answered:
        answer = self.answers.get(images[0])
        return Answered(text="I would rather not say" if answer is None else format_completion("seen", answer))


def test_an_endpoint_is_evaluated_by_the_same_grades(
    make_export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = make_export(samples=8)
    monkeypatch.setattr(evaluate, "ask_endpoint", Oracle(export, wrong=16))
    asked = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="oracle")
    report = evaluate.evaluate(config(export, tmp_path, endpoint=asked))
    assert report["refusals"] == {"no_answer": 4}
    assert report["figures"]["overall"]["exact"]["value"] == 0.5
    assert report["figures"]["overall"]["exact"]["low"] < 0.5 < report["figures"]["overall"]["exact"]["high"]


def test_images_that_were_trained_on_are_reported_or_refused(
    make_export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = make_export(samples=4)
    monkeypatch.setattr(evaluate, "ask_endpoint", Oracle(export, wrong=0))
    fields: dict[str, Any] = {
        "endpoint": EndpointConfig(base_url="http://127.0.0.1:9/v1", model="oracle"),
        "split": Split.TRAIN,
    }
    report = evaluate.evaluate(config(export, tmp_path, **fields))
    assert report["images_trained_on"]["count"] == 15
    assert report["images_trained_on"]["records"] == 12
    assert "15 images of this split were trained on" in evaluate.table(report)
    assert "15 images, in 12 records, were trained on" in (tmp_path / "evaluation" / "evaluation.md").read_text()
    with pytest.raises(Contaminated, match="15 images"):
        evaluate.evaluate(config(export, tmp_path, contamination="refuse", **fields))


def test_images_in_another_file_are_found_by_their_pixels(make_export: Callable[..., Path], tmp_path: Path) -> None:
    export = make_export(samples=4)
    records = list(read_records(export, Split.TRAIN))[:1]
    stored = []
    for image in records[0].images[:2]:
        buffer = io.BytesIO()
        with Image.open(export / image.path) as picture:
            exif = Image.Exif()
            exif[0x010E] = "with other metadata"
            picture.save(buffer, "WEBP", lossless=True, exif=exif)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        (tmp_path / digest).write_bytes(buffer.getvalue())
        stored.append(replace(image, path=digest, sha256=digest))
    fresh = Image.new("RGB", (records[0].original.width, records[0].original.height), (1, 2, 3))
    fresh.save(tmp_path / "fresh.png")
    asked = [
        replace(
            records[0], original=stored[0], candidates=(stored[1], replace(stored[1], path="fresh.png", sha256="f"))
        )
    ]
    assert evaluate.shared_images(asked, export) == []
    assert evaluate.shared_images(asked, export, pixels_in=tmp_path) == sorted(image.sha256 for image in stored)


def make_predictions(samples: int, right: float, seed: int = 0) -> list[Prediction]:
    rng, drawing = random.Random(1), random.Random(seed)
    found = []
    for number in range(samples):
        for dimension in ("physical_shadow", "placement_layout"):
            gold: Answer = rng.choice(all_answers(4))
            answer = gold if drawing.random() < right else frozenset()
            name = f"s{number}"
            found.append(Prediction(f"{name}:{dimension}", name, dimension, 4, gold, answer, None, ""))
    return found


def test_the_printed_number_is_the_one_the_optimizer_saw(make_export: Callable[..., Path]) -> None:
    record = next(read_records(make_export(samples=1)))
    for text in ("<answer>A</answer>", "<answer>none</answer>", "nothing", "<answer>A,B,C,D</answer>"):
        seen = grade(text, record.answer, 4, RewardWeights())
        prediction = predict(record, text)
        assert prediction.score(ScoreVariant.EXACT) == seen.exact
        assert prediction.score(ScoreVariant.BALANCED) == seen.dpa


def test_chance_levels_stand_beside_every_figure() -> None:
    predictions = make_predictions(40, 0.6)
    found = evaluate.figures(predictions, resamples=50)
    for name, part in found.items():
        some = [one for one in predictions if name in (one.dimension, "overall")]
        levels = chance_levels(
            ScoreVariant.EXACT,
            [one.answer for one in some],
            [one.gold for one in some],
            [4] * len(some),
            [one.dimension for one in some],
        )
        assert part["exact"]["chance"] == {
            "uniform": levels.uniform,
            "best_constant": levels.best_constant,
            "permuted": levels.permuted,
        }


def test_chance_of_all_is_the_mean_of_the_dimensions() -> None:
    """Who answers each dimension in its own way without a look is at chance, overall as well."""
    blind = [
        replace(one, answer=frozenset("A" if one.dimension == "physical_shadow" else "BC"))
        for one in make_predictions(30, 0.0)
    ]
    found = evaluate.figures(blind, resamples=50)
    for level in ("uniform", "best_constant", "permuted"):
        parts = [found[name]["exact"]["chance"][level] for name in ("physical_shadow", "placement_layout")]
        assert found["overall"]["exact"]["chance"][level] == pytest.approx(sum(parts) / 2)
    assert found["overall"]["exact"]["value"] == pytest.approx(found["overall"]["exact"]["chance"]["permuted"])


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    worse, better = make_predictions(150, 0.5, seed=1), make_predictions(150, 0.5, seed=1)
    better[::12] = [predictions_right(one) for one in better[::12]]
    interval = paired_difference(worse, better)
    assert interval.low > 0
    naive = sum(b.score(ScoreVariant.EXACT) - a.score(ScoreVariant.EXACT) for a, b in zip(worse, better, strict=True))
    assert interval.value == pytest.approx(naive / 300)
    with pytest.raises(ValueError, match="same records"):
        paired_difference(worse, better[1:])


def predictions_right(one: Prediction) -> Prediction:
    return Prediction(one.record_id, one.sample_id, one.dimension, one.candidates, one.gold, one.gold, None, one.text)


def test_a_constant_answer_never_beats_the_best_constant() -> None:
    constant = make_predictions(60, 0.0)
    assert beats_constant(constant).value <= 0
    assert beats_constant(constant).low < 0
    assert beats_constant(make_predictions(60, 0.9)).low > 0.5


@pytest.mark.parametrize(
    "fields", [{}, {"model_dir": Path("m"), "endpoint": EndpointConfig(base_url="http://x/v1", model="m")}]
)
def test_either_a_model_or_an_endpoint_is_named(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigRefused, match="either model_dir or endpoint"):
        config(tmp_path, tmp_path, **fields)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"absent\.jsonl"):
        read_predictions(tmp_path / "absent.jsonl")
    with pytest.raises(ConfigRefused, match="WINNOW_ABSENT_KEY is not set"):
        EndpointConfig(base_url="http://x/v1", model="m", key_env="WINNOW_ABSENT_KEY").key()
    nobody = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", attempts=1)
    with pytest.raises(EndpointFailed, match=r"http://127\.0\.0\.1:9/v1: no reply"):
        endpoint.ask_endpoint(nobody, ask(Dimension.PHYSICAL_SHADOW, Polarity.FLAWED, 1), ["data:,"] * 2, max_tokens=5)
