"""The comparison as a plain table: for CSV files, the command line and the API. One row per approach and dimension."""

from __future__ import annotations

from typing import Any

from annotation_server.runs.comparison import Choice, Line
from annotation_server.runs.mix import Mix, Option


def figures(line: Line) -> dict[str, Any]:
    """Every figure of a line by name; None is what is not known. Shares are from 0 to 1, costs per accepted record."""
    words = line.words
    found: dict[str, Any] = {
        "dimension": line.dimension or "all",
        "approach": line.approach,
        "asked": line.asked,
        "accepted": line.accepted,
        "acceptance": line.acceptance,
        "cost_usd": line.cost_usd,
        "people_usd": line.people_usd,
        "token_usd": line.token_usd,
        "unknown_calls": line.unknown_calls,
    }
    for name, held in (("gold", line.gold), ("others", line.others)):
        found |= {f"{name}_answers": held.answers, f"{name}_tasks": held.tasks}
        for measure, share in (("exact", held.exact), ("credit", held.credit)):
            found |= {f"{name}_{measure}": share.value, f"{name}_{measure}_low": share.low}
            found[f"{name}_{measure}_high"] = share.high
    return found | {
        "given_gold": line.given_gold,
        "person_seconds": line.person_seconds,
        "median_person_seconds": line.median_person_seconds,
        "model_seconds": line.model_seconds,
        "median_model_seconds": line.median_model_seconds,
        "with_rationale": line.with_rationale,
        "words_low": words.low if words else None,
        "words_median": words.middle if words else None,
        "words_high": words.high if words else None,
        "rationales_read": line.texts,
        "variety": line.variety,
        "variety_of": line.variety_of,
        "nearly_the_same": line.nearly_the_same,
    }


COLUMNS = (
    "dimension", "approach", "asked", "accepted", "acceptance", "cost_usd", "people_usd", "token_usd", "unknown_calls",
    "gold_answers", "gold_tasks", "gold_exact", "gold_exact_low", "gold_exact_high", "gold_credit", "gold_credit_low",
    "gold_credit_high", "others_answers", "others_tasks", "others_exact", "others_exact_low", "others_exact_high",
    "others_credit", "others_credit_low", "others_credit_high", "given_gold", "person_seconds", "median_person_seconds",
    "model_seconds", "median_model_seconds", "with_rationale", "words_low", "words_median", "words_high",
    "rationales_read", "variety", "variety_of", "nearly_the_same",
)  # fmt: skip
"""Of `row`, in its order."""


def row(line: Line) -> list[object]:
    """The figures in the order of COLUMNS."""
    found = figures(line)
    return [found[name] for name in COLUMNS]


def option_figures(dimension: str, option: Option) -> dict[str, Any]:
    """What a mix chooses in a dimension."""
    return {
        "dimension": dimension,
        "approach": option.approach,
        "then": option.then,
        "confidence": option.confidence,
        "left": option.left,
        "cost_usd": option.cost,
        "quality": option.quality,
        "borrowed": option.borrowed,
    }


def mix_figures(mix: Mix) -> dict[str, Any]:
    """A mix: what is to be expected of it, and its choices."""
    choices = [option_figures(dimension, option) for dimension, option in mix.choices.items()]
    return {"cost_usd": mix.cost, "quality": mix.quality, "choices": choices}


def choice_figures(choice: Choice) -> dict[str, Any]:
    """The mixes worth choosing, and the cheapest that reaches what was wanted."""
    return {
        "reference": choice.reference.value,
        "measure": choice.measure.value,
        "wanted": choice.wanted,
        "chosen": mix_figures(choice.chosen) if choice.chosen else None,
        "frontier": [mix_figures(mix) for mix in choice.mixes],
        "left_out": list(choice.left_out),
    }
