"""The checks of a completion that could be read: each a function of the question and the completion, nothing else.

In the order of Objection, the first that minds names the rejection; what it says in `detail` is for people. A check
that is not sure minds nothing: a good reasoning that is refused costs a call, and comes again in other words.

Not here: what needs more than the completion itself: near-copies (annotation_server/runs/near_copies.py) and the blind
re-solve (resolving.py); what is said to the model that tries again (trainer/contract/feedback.py).
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from annotation_server.runs.words import Shingle, contained, shingles, words
from annotation_workers.said import letters_named, verdicts_said
from annotation_workers.verdicts import Check, Question, Rejected
from trainer.contract.answers import Answer, Completion, format_answer
from trainer.contract.conclusions import sentences
from trainer.contract.dimensions import Dimension, Polarity, letters
from trainer.contract.feedback import Objection
from trainer.contract.prompts import EXPLAIN_WISH, FORM, criterion


def same_answer(question: Question, completion: Completion) -> Rejected | None:
    """A reasoning that leads elsewhere explains nothing."""
    given = given_answer(question)
    if completion.answer == given:
        return None
    return Rejected(
        Objection.ANSWER_DIFFERS,
        f"given {format_answer(given)}, the completion says {format_answer(completion.answer)}",
    )


def has_rationale(question: Question, completion: Completion) -> Rejected | None:
    """The reasoning is what was asked for."""
    if completion.rationale:
        return None
    return Rejected(Objection.NO_RATIONALE, "the completion holds an answer and no reasoning")


def not_too_long(question: Question, completion: Completion) -> Rejected | None:
    """As long as the project allows, in words; Chinese, Japanese and Korean by the character."""
    most, said = question.limits.max_words, len(words(completion.rationale))
    if most is None or said <= most:
        return None
    return Rejected(Objection.TOO_LONG, f"{said} words, at most {most} are wanted")


def not_too_short(question: Question, completion: Completion) -> Rejected | None:
    """As long as the project wants."""
    least, said = question.limits.min_words, len(words(completion.rationale))
    return None if said >= least else Rejected(Objection.TOO_SHORT, f"{said} words, at least {least} are wanted")


def keeps_the_secret(question: Question, completion: Completion) -> Rejected | None:
    """The reasoning must not show that its author was told where to arrive, or that somebody asked at all."""
    if (told := _TOLD.search(completion.rationale)) is not None:
        return Rejected(Objection.LEAKS, f"it says {_shown(told[0])}")
    instructions = ((EXPLAIN_WISH, _WISH_WORDS), (FORM, _WISH_WORDS), (criterion(question.dimension), _CRITERION_WORDS))
    for sentence in sentences(completion.rationale):
        said = words(sentence)
        runs = shingles(said)
        for text, least in instructions:
            if len(said) >= least and contained(runs, _runs_of(text)) > _REPEATED:
                return Rejected(Objection.LEAKS, f"it repeats the instruction: {_shown(sentence)}")
    return None


@cache
def _runs_of(instruction: str) -> frozenset[Shingle]:
    return shingles(words(instruction))


def says_something(question: Question, completion: Completion) -> Rejected | None:
    """It names candidates, and something that can be seen of the dimension."""
    if not letters_named(completion.rationale, question.candidates) and not (
        question.candidates == 1 and _THE_ONE.search(completion.rationale)
    ):
        return Rejected(Objection.EMPTY_TALK, "it names no candidate")
    if not _EVIDENCE[question.dimension].search(completion.rationale):
        return Rejected(Objection.EMPTY_TALK, f"it names nothing that can be seen of {question.dimension}")
    return None


def agrees_with_itself(question: Question, completion: Completion) -> Rejected | None:
    """What it clearly says of a candidate must be what its answer says of it."""
    listed = completion.answer
    good = listed if question.polarity == Polarity.ACCEPTABLE else frozenset(letters(question.candidates)) - listed
    for said in verdicts_said(completion.rationale, question.candidates):
        if said.acceptable is not (said.letter in good):
            called = "acceptable" if said.acceptable else "flawed"
            return Rejected(
                Objection.CONTRADICTS,
                f"the {question.polarity} ones are {format_answer(listed)}, but it calls {said.letter} {called}: "
                f"{_shown(said.words)}",
            )
    return None


def given_answer(question: Question) -> Answer:
    """The answer that an answer-driven question is about."""
    if question.given_answer is None:
        raise ValueError("an answer-driven question needs the answer that was given")
    return question.given_answer


OF_AUTOMATED: tuple[Check, ...] = (not_too_long, not_too_short, says_something, agrees_with_itself)
"""Nobody told it anything, and its answer is its own; an answer without reasoning is for `min_words` to refuse."""

OF_ANSWER_DRIVEN: tuple[Check, ...] = (
    same_answer,
    has_rationale,
    not_too_long,
    not_too_short,
    keeps_the_secret,
    says_something,
    agrees_with_itself,
)


def _shown(text: str) -> str:
    """The start of some words on one line, in quotation marks, without characters that turn those after them around."""
    line = " ".join(
        "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Cc") or char.isspace()).split()
    )
    return f"“{line[:120]}…”" if len(line) > 120 else f"“{line}”"


_REPEATED = 0.8
"""Share of a sentence's three-word runs that stand in the instruction."""
_WISH_WORDS = 5
_CRITERION_WORDS = 8
"""Shorter sentences say nothing; words for what is seen may well be a few of the criterion's."""

_TOLD = re.compile(
    r"\b(?:the|this|that|your|a)\s+(?:given|provided|supplied|stated|known|expected|specified|target|"
    r"pre-?determined|reference|gold(?:en)?)\s+(?:correct\s+|final\s+)?(?:answers?|verdicts?|solution|conclusion)\b|"
    r"\b(?:given|knowing|assuming|since|because|as)\s+(?:that\s+)?the\s+(?:correct\s+|final\s+|right\s+)?answer\s+"
    r"(?:is|was|lists|says|must|states|names)\b|"
    r"\b(?:the\s+)?(?:correct\s+|right\s+)?answer\s+(?:was|has been|is already|is)\s+(?:already\s+)?"
    r"(?:given|provided|known|told|supplied|stated)\b|"
    r"\b(?:I|we)\s+(?:was|were|am|are|have been|had been|'ve been)\s+(?:already\s+)?"
    r"(?:told|informed|instructed|asked\s+to\s+(?:explain|justify|reason|write)|"
    r"(?:given|provided|supplied)\s+(?:with\s+)?(?:the\s+)?(?:correct\s+|final\s+)?answers?)\b|"
    r"\baccording\s+to\s+the\s+(?:given|provided|instructions?|prompt|annotator|annotation|human|user|answer)\b|"
    r"\bas\s+(?:\w+\s+)?(?:given|stated|instructed|requested|specified|indicated|told|provided|asked)\s+"
    r"(?:in|by|to|me|for)?\s*(?:the\s+)?(?:prompt|question|instructions?|task|user|you|above|beforehand|answer)\b|"
    r"\bas\s+(?:requested|instructed|you\s+(?:said|asked|wish|requested|pointed))\b|"
    r"\b(?:to|must|should|need to|have to|will)\s+(?:justify|rationali[sz]e|defend|arrive at|support)\s+"
    r"(?:the|this|that|your)\s+(?:given\s+|final\s+|correct\s+)?(?:answer|verdict|conclusion|selection|choice)\b|"
    r"\bas if (?:I|we|you) had\b|\bground[- ]truth\b|\b(?:the|this|your) prompt\b|"
    r"\bthe instructions?\b(?!\s+(?:on|printed|text|label|panel|leaflet|written))|"
    r"\bthe user (?:said|says|asked|asks|wants|wanted|gave|provided|told|stated)\b|\bby the user\b|"
    r"\bapologi[sz]e\b|\bmy (?:previous|earlier|last|first) (?:reasoning|answer|reply|response|attempt)\b|"
    r"\b(?:revised|corrected|rewritten|updated) (?:reasoning|answer|reply|response)\b|"
    r"(?:给定|已知|给出|所给|提供|告知|告诉|标准|参考|预设|既定|指定)的?(?:正确)?(?:答案|结论)|"
    r"(?:既然|由于|因为|鉴于|已知)(?:正确)?答案|答案(?:已经|已)(?:给出|告知|给定|知道)|"
    r"(?:我|我们)?(?:已经?)?(?:被|经)(?:告知|要求|指示)|"
    r"(?:根据|按照|依据)(?:您|你|用户|给出|给定|提供|指令|指示|提示|要求|答案)|"
    r"(?:题目|题干|提示|指令|用户)(?:中|里)?(?:已经?)?(?:给出|给定|提供|告诉|指出)|"
    r"提示词|抱歉|对不起|(?:之前|上次|先前|上一次)的?(?:推理|回答|答案|回复)|(?:修改|修正|重写)后的(?:推理|回答|答案|回复|版本)",
    re.IGNORECASE,
)

_THE_ONE = re.compile(r"\bcandidate\b|候选", re.IGNORECASE)

_EVIDENCE: dict[Dimension, re.Pattern[str]] = {
    Dimension.APPEARANCE_DEFORMATION: re.compile(
        r"\b(?:shap|outlin|contour|silhouette|colou?r|hue|label|logo|text|letter(?:ing|s)|print|mark|band|cap\b|lid|handle|"
        r"part|body|neck|edge|bent|bend|bulg|warp|wav|deform|distort|twist|stretch|squash|garbl|torn|blur|smear|missing|"
        r"extra|added|texture|pattern|proportion|material|surface|same\b|identical|differ|original|arm\b|spout|strap)|"
        r"形状|外形|轮廓|颜色|色|标签|标志|文字|字|图案|部件|把手|瓶|盖|身|边缘|弯|扭|变形|拉伸|模糊|缺|多出|纹理|比例|材质|原图|一致|相同",
        re.IGNORECASE,
    ),
    Dimension.PHYSICAL_SHADOW: re.compile(
        r"\b(?:shadow|shad(?:e|ing)|light|lit\b|lamp|sun|dark|bright|cast|contact|touch|ground|floor|reflect|float|occlu|"
        r"window|illuminat|highlight)|影|光|亮|暗|灯|太阳|接触|地面|反射|悬",
        re.IGNORECASE,
    ),
    Dimension.PLACEMENT_LAYOUT: re.compile(
        r"\b(?:stand|sit|rest|lie|lying|plac|position|ground|floor|table|desk|shelf|surface|upright|vertical|tilt|lean|"
        r"slant|float|hover|hang|sink|sunk|sank|buried|cut|crop|edge|frame|size|scale|large|small|big|huge|tiny|"
        r"perspective|level|balanc|proportion|support)|立|放|置|摆|地面|桌|台面|表面|直|倾|斜|悬|浮|飘|陷|沉|切|裁|边缘|大|小|比例|尺寸|透视",
        re.IGNORECASE,
    ),
    Dimension.EXTENSION_RATIONALITY: re.compile(
        r"\b(?:background|backdrop|seam|join|edge|border|horizon|line|repeat|duplicat|tile|strip|ghost|hole|gap|unfilled|"
        r"empty|blank|patch|wall|floor|ground|table|sky|run|continu|extend|extension|blend|smooth|even|break|broke|texture|"
        r"pattern|scene|side|left|right|artifact|artefact|stretch)|背景|接缝|缝|边|地平线|线|重复|条|鬼影|残影|洞|空|墙|地面|桌|天空|延续|连续|延伸|"
        r"过渡|融合|平滑|断|纹理|场景|左|右",
        re.IGNORECASE,
    ),
}
"""Words for what can be seen, by their beginnings: what a reasoning about a dimension can hardly do without."""
