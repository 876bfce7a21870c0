"""What a reasoning says of each candidate: which letters it names, which it calls acceptable or flawed.

Made for precision: only sentences that can be read in one way count, in English and Chinese. Whatever hedges,
compares, asks, or speaks of a part of a candidate ("A's shadow is fine") says nothing here.

Not here: whether that agrees with an answer (checks.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.contract.dimensions import letters

_GOOD_WORDS = (
    r"acceptable|fine|ok|okay|flawless|faultless|sound|satisfactory|valid|unflawed|passes|"
    r"not (?:visibly |really )?(?:flawed|defective|faulty)|"
    r"(?:free of|without)(?: any| visible| obvious)* (?:flaws?|defects?|faults?)"
)
_BAD_WORDS = (
    r"unacceptable|inacceptable|flawed|defective|faulty|unsatisfactory|invalid|fails|"
    r"not (?:really |quite |at all )?(?:acceptable|fine|ok|okay|sound|satisfactory|valid)"
)
_GOOD_ZH = r"合格|可以接受|可接受|能接受|(?:没有|无)(?:任何|明显|可见)?的?(?:问题|缺陷|瑕疵)"
_BAD_ZH = r"不合格|不可接受|不能接受|无法接受|不可以接受|(?:有|存在)(?:明显|可见)?(?:的)?(?:问题|缺陷|瑕疵)"

_BAD = rf"(?:{_BAD_WORDS}|{_BAD_ZH})"
_GOOD = rf"(?:{_GOOD_WORDS}|{_GOOD_ZH})"
_VERDICT = rf"(?:(?P<bad>{_BAD})|(?P<good>{_GOOD}))"

_NOUN = r"(?:candidates?|images?|options?|pictures?|候选图像|候选图片|候选图|候选|图像|图片|选项|图)"
_JOIN = r"(?:\s*(?:,|、|，|/|&)\s*(?:and\s+|or\s+|和|与|及)?|\s+(?:and|or)\s+|\s*(?:和|与|及|或)\s*)"
_LETTER = r"(?<![A-Za-z0-9'’])(?-i:[A-H])(?![A-Za-z0-9'’])"
_LIST = rf"(?:{_NOUN}\s*)?{_LETTER}(?:{_JOIN}(?:{_NOUN}\s*)?{_LETTER}){{0,7}}"

_LONGEST = 1000
"""Characters of a sentence: nobody can read a longer one in one way."""
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")
_HEDGED = re.compile(
    r"\b(?:if|would|could|might|may|unless|perhaps|maybe|at first|first glance|almost|nearly|should|whether|"
    r"seems?|appears?)\b|[?？]|如果|可能|也许|乍看|似乎|看似|若|假如|是否",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"^\W*(?:{_NOUN}\s*)?(?P<letter>{_LETTER})\W*(?:[:：]|\s[-–—]\s)\W*(?P<rest>.*)$", re.DOTALL | re.IGNORECASE
)
_LISTED = re.compile(
    rf"^\W*(?:the\s+)?{_VERDICT}(?:\s*的)?(?:\s*{_NOUN})?(?:\s+(?:is|are))?\s*(?:[:：是为]|\b(?:is|are)\b)\W*"
    rf"(?P<list>{_LIST})[\s.。;；!！*)]*$",
    re.IGNORECASE,
)
_LAST_CLAUSE = re.compile(
    rf"^\W*(?:so|thus|hence|therefore|overall|it is|and|is|judged|因此|所以|故|判定为|判为|属于|为|是|整体)*\s*"
    rf"{_VERDICT}[\s.。;；!！*)]*$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,，:：]|\s[-–—]\s|\b(?:so|thus|hence|therefore)\b|因此|所以", re.IGNORECASE)
_STATED = re.compile(
    rf"(?P<list>{_LIST})\s*(?P<verb>\b(?:is|are)\b|均为|都为|都是|都|均|也|是|为|属于)?\s*"
    rf"(?:\b(?:both|all|also|therefore|thus|clearly|visibly|judged|overall|hence)\b\s*)*{_VERDICT}"
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
_ALL = re.compile(
    rf"^\W*(?:(?:so|thus|therefore|hence|因此|所以),?\s*)?"
    rf"(?:(?P<every>(?:all|each|every one)(?: of)?(?: the)?(?: \w+)?(?: candidates| them| images)?|every candidate|"
    rf"所有候选图?|全部候选图?|所有图片|四(?:个|张)候选图?)|"
    rf"(?P<none>none(?: of (?:the(?: \w+)? candidates|them))?|no candidate))"
    rf"\s*(?:is|are|都|均)\s*(?:是|为)?\s*{_VERDICT}[\s.。;；!！*)]*$",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"(?i:{_NOUN})\s*(?P<one>{_LETTER})|(?P<label>{_LETTER})(?=\W{{0,3}}[:：、，,;)\]]|\s*[\u4e00-\u9fff]|\s+(?:and|or)\s+[A-H]\b|\s[-–—]\s)"
    rf"|(?P<verb>{_LETTER})(?=(?:'s|’s)?\s+(?:is|are|has|have|shows?|looks?|stands?|floats?|lies|leans?|sinks?|casts?|does|"
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
    found |= {letter for match in re.finditer(_LIST, text) if len(match[0]) > 1 for letter in _letters(match[0])}
    return frozenset(found) & frozenset(letters(count))


def verdicts_said(text: str, count: int) -> list[Said]:
    """Every clear statement about a candidate, in order; one candidate may have several, even opposite ones."""
    allowed = letters(count)
    return [said for sentence in sentences(text) for said in _of_sentence(sentence, allowed) if said.letter in allowed]


def sentences(text: str) -> list[str]:
    """A text cut where sentences, lines and what stands between semicolons end."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def without_conclusion(text: str) -> str:
    """The reasoning with its answer cut off: without sentences at its end that only list letters by their verdict.

    What is said of each candidate by itself stays: it is the reasoning.
    """
    kept = sentences(text)
    while kept and _concludes(kept[-1]):
        kept.pop()
    return " ".join(kept)


_CONCLUSION = re.compile(
    r"^\W*(?:(?:so|thus|hence|therefore|in conclusion|overall|因此|所以|综上|总之)\W*)?"
    r"(?:(?:the\s+)?(?:final\s+|correct\s+)?answer\b|最终答案|答案)",
    re.IGNORECASE,
)
_SO = re.compile(r"\W*(?:so|thus|hence|therefore|overall|only|因此|所以|综上|总之|只有)", re.IGNORECASE)
_NOBODY_LISTED = re.compile(rf"^\W*{_VERDICT}(?:\s*{_NOUN})?\s*[:：]\s*(?:none|无|没有)\W*$", re.IGNORECASE)
_ONLY_LISTED = re.compile(
    rf"^\W*(?:(?:so|thus|hence|therefore|overall|因此|所以|综上|总之)\W*)?(?:only\s+|只有)?{_LIST}\s*"
    rf"(?:is|are|都|均|也)?\s*(?:是|为)?\s*{_VERDICT}\W*$",
    re.IGNORECASE,
)


def _concludes(sentence: str) -> bool:
    # "A is flawed." by itself may be the only thing that is said of A: a list of several is a conclusion.
    if len(sentence) > _LONGEST:
        return False
    if (only := _ONLY_LISTED.match(sentence)) is not None:
        return len(_letters(only[0])) > 1 or bool(
            re.match(r"\W*(?:so|thus|hence|therefore|因此|所以|综上)", only[0], re.I)
        )
    return any(pattern.match(sentence) for pattern in (_LISTED, _NOBODY_LISTED, _CONCLUSION, _ALL))


def _of_sentence(sentence: str, allowed: str) -> Iterator[Said]:
    if len(sentence) > _LONGEST or _HEDGED.search(sentence):
        return
    if (whole := _ALL.match(sentence)) is not None:
        good = (whole["good"] is not None) is (whole["every"] is not None)
        yield from (Said(letter, good, sentence) for letter in allowed)
    elif (listed := _LISTED.match(sentence)) is not None:
        yield from (Said(letter, listed["good"] is not None, sentence) for letter in _letters(listed["list"]))
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
        named = _letters(match["list"])
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


def _letters(listed: str) -> list[str]:
    return re.findall(_LETTER, listed)
