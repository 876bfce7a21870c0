"""What a reasoning says of each candidate: which letters it names, which it calls acceptable or flawed.

Made for precision: only sentences that can be read in one way count, in English and Chinese. Whatever hedges,
compares, asks, or speaks of a part of a candidate ("A's shadow is fine") says nothing here.

Not here: whether that agrees with an answer (checks.py), what a conclusion is (trainer/contract/conclusions.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.contract.conclusions import ALL, LETTER, LIST, LISTED, LONGEST, NOUN, VERDICT, letters_in, sentences
from trainer.contract.dimensions import letters

_HEDGED = re.compile(
    r"\b(?:if|would|could|might|may|unless|perhaps|maybe|at first|first glance|almost|nearly|should|whether|"
    r"seems?|appears?)\b|[?？]|如果|可能|也许|乍看|似乎|看似|若|假如|是否",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"^\W*(?:{NOUN}\s*)?(?P<letter>{LETTER})\W*(?:[:：]|\s[-–—]\s)\W*(?P<rest>.*)$", re.DOTALL | re.IGNORECASE
)
_LAST_CLAUSE = re.compile(
    rf"^\W*(?:so|thus|hence|therefore|overall|it is|and|is|judged|因此|所以|故|判定为|判为|属于|为|是|整体)*\s*"
    rf"{VERDICT}[\s.。;；!！*)]*$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,，:：]|\s[-–—]\s|\b(?:so|thus|hence|therefore)\b|因此|所以", re.IGNORECASE)
_STATED = re.compile(
    rf"(?P<list>{LIST})\s*(?P<verb>\b(?:is|are)\b|均为|都为|都是|都|均|也|是|为|属于)?\s*"
    rf"(?:\b(?:both|all|also|therefore|thus|clearly|visibly|judged|overall|hence)\b\s*)*{VERDICT}"
    rf"(?=\s*(?:$|[.,;!:)。，；！：）]|\b(?:because|since|as|and|while|whereas|for)\b|因为|由于|而))",
    re.IGNORECASE,
)
_VERB_ITSELF = re.compile(r"passes|fails|[\u4e00-\u9fff]", re.IGNORECASE)
_SINGULAR = re.compile(r"is", re.IGNORECASE)
_AFTER_COMMA = re.compile(r"[,，]\s*[A-H]$")
_TURNED = re.compile(
    r"^\s*[,，;；]?\s*\b(?:but|however|except|though|although|apart|aside|otherwise|yet)\b|^[，,\s]*(?:但|不过|然而|除了|只是)",
    re.IGNORECASE,
)
_NOT_SUBJECT = re.compile(
    r"(?:\b(?:of|in|with|for|to|under|behind|than|from|as|like|by|but|except|unlike|besides|without|on|at|near|"
    r"not|neither|nor|either|no)|除|除了|比|像|不像|与|和|并非|不是)\s*(?:the\s+)?$",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"(?i:{NOUN})\s*(?P<one>{LETTER})|(?P<label>{LETTER})(?=\W{{0,3}}[:：、，,;)\]]|\s*[\u4e00-\u9fff]|\s+(?:and|or)\s+[A-H]\b|\s[-–—]\s)"
    rf"|(?P<verb>{LETTER})(?=(?:'s|’s)?\s+(?:is|are|has|have|shows?|looks?|stands?|floats?|lies|leans?|sinks?|casts?|does|"
    rf"lacks?|keeps?|matches|appears?|seems?|sits?|rests?|hangs?|repeats?|continues?|breaks?|differs?|fails|passes)\b)"
    rf"|(?P<sure>(?<![A-Za-z0-9'’])[B-H](?![A-Za-z0-9]))"
)


@dataclass(frozen=True, slots=True)
class Said:
    """One clear statement: a candidate, what it is called, and the words."""

    letter: str
    acceptable: bool
    words: str


def letters_named(text: str, count: int) -> frozenset[str]:
    """The candidates a text speaks of. The article "A" is none: what follows a subject must follow it."""
    found = {group for match in _NAMED.finditer(text) for group in match.groups() if group}
    found |= {letter for match in re.finditer(LIST, text) if len(match[0]) > 1 for letter in letters_in(match[0])}
    return frozenset(found) & frozenset(letters(count))


def verdicts_said(text: str, count: int) -> list[Said]:
    """Every clear statement about a candidate, in order; one candidate may have several, even opposite ones."""
    allowed = letters(count)
    return [said for sentence in sentences(text) for said in _of_sentence(sentence, allowed) if said.letter in allowed]


def _of_sentence(sentence: str, allowed: str) -> Iterator[Said]:
    if len(sentence) > LONGEST or _HEDGED.search(sentence):
        return
    if (whole := ALL.match(sentence)) is not None:
        good = (whole["good"] is not None) is (whole["every"] is not None)
        yield from (Said(letter, good, sentence) for letter in allowed)
    elif (listed := LISTED.match(sentence)) is not None:
        yield from (Said(letter, listed["good"] is not None, sentence) for letter in letters_in(listed["list"]))
    elif (label := _LABEL.match(sentence)) is not None:
        clauses = [clause for clause in _CLAUSE.split(label["rest"]) if clause.strip(" .。*")]
        first_or_last = [clauses[-1], clauses[0]] if clauses else []
        verdict = next((found for clause in first_or_last if (found := _LAST_CLAUSE.match(clause)) is not None), None)
        if verdict is not None:
            yield Said(label["letter"], verdict["good"] is not None, sentence)
    else:
        yield from _stated(sentence)


def _stated(sentence: str) -> Iterator[Said]:
    for match in _STATED.finditer(sentence):
        named = letters_in(match["list"])
        if _TURNED.match(sentence[match.end() :]):
            continue
        if len(named) > 1 and _SINGULAR.fullmatch(match["verb"] or ""):
            if not _AFTER_COMMA.search(match["list"]):
                continue  # "the shadow of A and B is fine"
            named = named[-1:]  # "compared with A, B is flawed"
        elif _NOT_SUBJECT.search(sentence[: match.start()]):
            continue
        if match["verb"] is None and not _VERB_ITSELF.match(match["good"] or match["bad"]):
            continue
        yield from (Said(letter, match["good"] is not None, sentence) for letter in named)
