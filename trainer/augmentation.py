"""Other arrangements of one sample that mean the same: candidates in another order, everything seen in a mirror.

Not here: when to do so (sft.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from trainer.contract.dimensions import letters
from trainer.contract.records import Record
from trainer.images import ImageTensor


def permute_candidates(record: Record, order: Sequence[int]) -> Record | None:
    """The record with candidate ``order[i]`` in place i: images, answer and rationale follow. `meta` is dropped.

    None when the rationale cannot be relabelled with certainty: it must be empty, or one part per candidate, each
    beginning with its letter and a colon and naming no other letter or place in the order ("as in the first"). Before
    the parts may stand what begins with ``Original:``, after them lists such as ``Fine: A, C.``
    """
    names = letters(len(record.candidates))
    read = _read(record.rationale, names)
    if read is None:
        return None
    renamed = {names[source]: names[place] for place, source in enumerate(order)}
    said = [f"{names[place]}:{read.parts[names[source]]}" for place, source in enumerate(order)] if read.parts else []
    return replace(
        record,
        candidates=tuple(record.candidates[source] for source in order),
        answer=frozenset(renamed[name] for name in record.answer),
        rationale=" ".join([*read.lead, *said, *(_relabel_list(listed, renamed) for listed in read.lists)]),
        meta={},
    )


def mirror_images(images: Sequence[ImageTensor]) -> list[ImageTensor]:
    """Left and right of every picture exchanged."""
    return [torch.flip(image, dims=[1]) for image in images]


def mirror_rationale(record: Record) -> Record | None:
    """The record with the words left and right exchanged; None where one of them may mean no side ("looks right")."""
    said = record.rationale
    if "clockwise" in said or not all(_is_a_side(said, found) for found in _SIDE.finditer(said)):
        return None
    return replace(record, rationale=_SIDE.sub(lambda found: _opposite(found["side"]) + (found["more"] or ""), said))


def _is_a_side(said: str, found: re.Match[str]) -> bool:
    """Whether the word stands as sides do: "on the left", "the right edge", "leans right", "leftmost"."""
    before, after = said[: found.start()], said[found.end() :]
    if found["more"] or _THING_WITH_SIDES.match(after):
        return True
    if _AT.search(before):
        return bool(_AFTER_PLACE.match(after))
    return bool(_TOWARDS.search(before) and _AFTER_WAY.match(after))


def _opposite(side: str) -> str:
    other = "right" if side.lower() == "left" else "left"
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other


@dataclass(frozen=True, slots=True)
class _Read:
    parts: dict[str, str]
    """What follows each letter's colon; empty for an empty rationale."""
    lists: list[str]
    """``Fine: A, C.`` and the like, after the parts."""
    lead: list[str]
    """What is said of the original before the parts: nothing, or one piece."""


_SIDE = re.compile(r"\b(?P<side>left|right)(?P<more>most|wards?|hand)?\b", re.IGNORECASE)
_THINGS = "side|edge|corner|half|border|margin|third|quarter|end|wall|hand|arm|leg|foot|shoulder|eye|ear"
_THING_WITH_SIDES = re.compile(rf"[ -](?:{_THINGS})s?\b(?! up\b)")
_AFTER_PLACE = re.compile(
    r"$|[,.;:!?)]| (?:and|or|of|but|while|as|is|are|was|where|which|with|than|to|at|in|on|from)\b"
)
"""What may stand behind a place; not a word that right may be about, as in "the right place"."""
_AFTER_WAY = re.compile(r"$|[,.;:!?)]| (?:and|or|but|away)\b")
"""What may stand behind a way; not "falls right where it should"."""
_AT = re.compile(
    r"\b(?:on|to|at|from|towards?|in|of|off|along|near) (?:(?:the|its|their|each) )?"
    r"(?:far |upper |lower |top |bottom )?$",
    re.IGNORECASE,
)
_TOWARDS = re.compile(
    r"\b(?:fall|lean|point|face|tilt|slant|drift|shift|move|bend|cast)(?:s|ed|d|ing)? (?:slightly |far )?$",
    re.IGNORECASE,
)
_PLACE_IN_ORDER = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|last|former|latter|previous|preceding|1st|2nd|3rd|[4-8]th"
    r"|next(?! to\b)|(?:candidate|image|picture|option|number) #?[1-8]|(?:one|other)s? (?:before|after|above|below))\b"
    r"|#[1-8]\b",
    re.IGNORECASE,
)
"""A candidate by where it stands among the others, which changes."""
_PART = re.compile(r"(?:^|(?<=\s))(?=[A-H]:)")
_LETTER = re.compile(r"(?<![A-Za-z])[A-H](?![A-Za-z])")
_LIST = re.compile(r"[A-Z][a-z]+(?: [a-z]+)*: (?:none|[A-H](?:, ?[A-H])*)\.")
_LISTS_AT_END = re.compile(rf"(?:\s+{_LIST.pattern})+$")
_SENTENCE_END = re.compile(r"[.!?;](?:\s|$)")


def _read(rationale: str, names: str) -> _Read | None:
    """Take a rationale apart; None when it is ambiguous."""
    text = rationale.strip()
    lists: list[str] = []
    if tail := _LISTS_AT_END.search(text):
        lists, text = _LIST.findall(tail[0]), text[: tail.start()]
    if not text:
        return _Read({}, lists, []) if not lists else None
    pieces = [piece.strip() for piece in _PART.split(text) if piece.strip()]
    lead = [pieces.pop(0)] if pieces[0].startswith("Original:") else []
    if any(map(_LETTER.search, lead)) or _PLACE_IN_ORDER.search(text):
        return None
    parts = {piece[0]: piece[2:] for piece in pieces if piece[1:2] == ":"}
    if len(pieces) != len(names) or sorted(parts) != sorted(names) or any(map(_LETTER.search, parts.values())):
        return None
    # A last part with more sentences than any other may carry a conclusion about all of them.
    sentences = [len(_SENTENCE_END.findall(piece)) for piece in pieces]
    if len(pieces) > 1 and sentences[-1] > max(sentences[:-1]):
        return None
    return _Read(parts, lists, lead)


def _relabel_list(listed: str, renamed: dict[str, str]) -> str:
    head, _, letters_or_none = listed.rstrip(".").rpartition(": ")
    found = _LETTER.findall(letters_or_none)
    return f"{head}: {', '.join(sorted(renamed[name] for name in found)) or 'none'}."
