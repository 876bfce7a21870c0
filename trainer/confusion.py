"""Which answers are taken for which, and which letters are named too often: where a model's mistakes lie.

Also what is hard among evaluated records. Not here: scores (contract/scores.py), tables and plots (comparison.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import Refused
from trainer.contract.answers import format_answer
from trainer.contract.records import Record
from trainer.predictions import Prediction

UNREAD = "unread"
"""Stands for an answer that could not be read."""
FAINT = 0.65
"""Drawn scenes: a defect up to this level is faint. Between the ranges that fixtures/defects.py draws from."""


def confusion(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """How often each answer that stands was answered with which, both as they are written ("A,C", "none").

    ``pairs`` has every pair that occurred, right ones too; ``size`` how many letters too many or too few were named.
    """
    pairs: dict[str, Counter[str]] = {}
    sizes: Counter[int] = Counter()
    for one in predictions:
        said = UNREAD if one.answer is None else format_answer(one.answer)
        pairs.setdefault(format_answer(one.gold), Counter())[said] += 1
        if one.answer is not None:
            sizes[len(one.answer) - len(one.gold)] += 1
    return {
        "pairs": {gold: dict(said.most_common()) for gold, said in sorted(pairs.items())},
        "size": {str(difference): sizes[difference] for difference in sorted(sizes)},
    }


def letter_counts(predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
    """Per letter: named rightly, named wrongly, left out wrongly, left out rightly. Unread answers count as none of
    these but under ``unread``."""
    counts: dict[str, Counter[str]] = {}
    for one in predictions:
        for letter in "ABCDEFGH"[: one.candidates]:
            of_letter = counts.setdefault(letter, Counter())
            if one.answer is None:
                of_letter[UNREAD] += 1
            else:
                stands, said = letter in one.gold, letter in one.answer
                name = ("true" if stands == said else "false") + ("_positive" if said else "_negative")
                of_letter[name] += 1
    kinds = ("true_positive", "false_positive", "false_negative", "true_negative", UNREAD)
    return {letter: {kind: counts[letter][kind] for kind in kinds} for letter in sorted(counts)}


def mistakes(found: Mapping[str, Any], most: int = 8) -> list[tuple[str, str, int]]:
    """The commonest wrong pairs of a `confusion`: the answer that stands, what was said, how often."""
    wrong = [(gold, said, times) for gold, row in found["pairs"].items() for said, times in row.items() if said != gold]
    return sorted(wrong, key=lambda row: (-row[2], row[0], row[1]))[:most]


def hard_records(
    records: Sequence[Record], answered: Sequence[Sequence[Prediction]], hard_file: Path | None
) -> tuple[str, set[str]]:
    """The rule by which records are hard, in words, and the ids of the hard ones; no rule where nothing tells.

    The first of: the ids listed in `hard_file`; ``meta["hard"]``; the levels of drawn defects, of which one is faint;
    people who did not all agree; more than half of at least three compared models being wrong. All of it is ours.
    """
    if hard_file is not None:
        try:
            listed = set(hard_file.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"hard_file: {hard_file}: cannot be read ({error})") from None
        return f"listed in {hard_file.name}", {record.id for record in records if record.id in listed}
    if any("hard" in record.meta for record in records):
        return "marked in the records", {record.id for record in records if record.meta.get("hard")}
    if any("levels" in record.meta for record in records):
        return "a faint defect", {record.id for record in records if _has_faint_defect(record)}
    unsure = {record.id for record in records if record.agreement is not None and record.agreement < 1}
    if unsure:
        return "people did not all agree", unsure
    if len(answered) >= 3:
        wrong = Counter(one.record_id for some in answered for one in some if one.answer != one.gold)
        return "most of the compared models are wrong", {
            key for key, times in wrong.items() if 2 * times > len(answered)
        }
    return "", set()


def _has_faint_defect(record: Record) -> bool:
    levels = record.meta.get("levels")
    found = [one.get(record.dimension.value) for one in levels or [] if isinstance(one, dict)]
    return any(isinstance(level, int | float) and level <= FAINT for level in found)
