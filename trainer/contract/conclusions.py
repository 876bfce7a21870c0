"""A reasoning without its conclusion, and the words by which a conclusion is known, in English and Chinese.

What a re-solve is shown, in training as in asking: the answer must follow from the rest. Only sentences that can be
read in one way are taken for a conclusion; what is said of each candidate by itself stays, for it is the reasoning.

Not here: whether what is said of a candidate agrees with an answer (annotation_workers/said.py).
"""

from __future__ import annotations

import re

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
VERDICT = rf"(?:(?P<bad>{_BAD})|(?P<good>{_GOOD}))"

NOUN = r"(?:candidates?|images?|options?|pictures?|候选图像|候选图片|候选图|候选|图像|图片|选项|图)"
JOIN = r"(?:\s*(?:,|、|，|/|&)\s*(?:and\s+|or\s+|和|与|及)?|\s+(?:and|or)\s+|\s*(?:和|与|及|或)\s*)"
LETTER = r"(?<![A-Za-z0-9'’])(?-i:[A-H])(?![A-Za-z0-9'’])"
LIST = rf"(?:{NOUN}\s*)?{LETTER}(?:{JOIN}(?:{NOUN}\s*)?{LETTER}){{0,7}}"

LONGEST = 1000
"""Characters of a sentence: nobody can read a longer one in one way."""
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")
LISTED = re.compile(
    rf"^\W*(?:the\s+)?{VERDICT}(?:\s*的)?(?:\s*{NOUN})?(?:\s+(?:is|are))?\s*(?:[:：是为]|\b(?:is|are)\b)\W*"
    rf"(?P<list>{LIST})[\s.。;；!！*)]*$",
    re.IGNORECASE,
)
ALL = re.compile(
    rf"^\W*(?:(?:so|thus|therefore|hence|因此|所以),?\s*)?"
    rf"(?:(?P<every>(?:all|each|every one)(?: of)?(?: the)?(?: \w+)?(?: candidates| them| images)?|every candidate|"
    rf"所有候选图?|全部候选图?|所有图片|四(?:个|张)候选图?)|"
    rf"(?P<none>none(?: of (?:the(?: \w+)? candidates|them))?|no candidate))"
    rf"\s*(?:is|are|都|均)\s*(?:是|为)?\s*{VERDICT}[\s.。;；!！*)]*$",
    re.IGNORECASE,
)


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
_NOBODY_LISTED = re.compile(rf"^\W*{VERDICT}(?:\s*{NOUN})?\s*[:：]\s*(?:none|无|没有)\W*$", re.IGNORECASE)
_ONLY_LISTED = re.compile(
    rf"^\W*(?:(?:so|thus|hence|therefore|overall|因此|所以|综上|总之)\W*)?(?:only\s+|只有)?{LIST}\s*"
    rf"(?:is|are|都|均|也)?\s*(?:是|为)?\s*{VERDICT}\W*$",
    re.IGNORECASE,
)


def _concludes(sentence: str) -> bool:
    # "A is flawed." by itself may be the only thing that is said of A: a list of several is a conclusion.
    if len(sentence) > LONGEST:
        return False
    if (only := _ONLY_LISTED.match(sentence)) is not None:
        return len(letters_in(only[0])) > 1 or bool(
            re.match(r"\W*(?:so|thus|hence|therefore|因此|所以|综上)", only[0], re.I)
        )
    return any(pattern.match(sentence) for pattern in (LISTED, _NOBODY_LISTED, _CONCLUSION, ALL))


def letters_in(listed: str) -> list[str]:
    return re.findall(LETTER, listed)
