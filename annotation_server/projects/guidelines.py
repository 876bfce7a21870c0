"""What annotators should know, per dimension, and the phrases at hand for their rationales.

A project's own text and phrases come first; where it has none, ours stand, in the reader's language. Texts are Markdown
without raw HTML. Not here: the question and label of a dimension (wording.py), a project's own examples, which not
everybody may see (annotations/examples.py), what models are told (trainer.contract.prompts).
"""

from __future__ import annotations

from dataclasses import dataclass

from django.templatetags.static import static
from django.utils.translation import get_language
from markdown_it import MarkdownIt

from annotation_server.projects import guidelines_en, guidelines_zh_hans
from annotation_server.projects.models import Project
from trainer.contract.dimensions import Dimension

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")

EXAMPLES: dict[Dimension, tuple[str, ...]] = {
    Dimension.APPEARANCE_DEFORMATION: (
        "appearance-warped",
        "appearance-garbled",
        "appearance-recoloured",
        "appearance-part",
        "appearance-added",
        "appearance-fine",
    ),
    Dimension.PHYSICAL_SHADOW: (
        "shadow-missing",
        "shadow-reversed",
        "shadow-detached",
        "shadow-doubled",
        "shadow-long",
        "shadow-fine",
    ),
    Dimension.PLACEMENT_LAYOUT: (
        "placement-floating",
        "placement-tilted",
        "placement-large",
        "placement-sunk",
        "placement-cut",
        "placement-fine",
    ),
    Dimension.EXTENSION_RATIONALITY: (
        "extension-horizon",
        "extension-seam",
        "extension-repeated",
        "extension-ghost",
        "extension-hole",
        "extension-fine",
    ),
}
"""Our examples: pairs of pictures in static/guidelines/, drawn by fixtures/draw_guidelines.py."""

_BESIDE_THE_ORIGINAL = {Dimension.APPEARANCE_DEFORMATION}
"""Where the left picture of our pairs is the original; elsewhere it is the same scene as it should be."""


@dataclass(frozen=True, slots=True)
class ShownExample:
    """A picture to learn from, beside what it is held against."""

    left: str
    """Address of the picture on the left."""
    left_is_original: bool
    """Else it is the same scene without the flaw."""
    right: str
    caption: str
    flawed: bool
    """Whether the picture on the right is flawed in the dimension."""
    own_id: int | None = None
    """Of an example that the project added; None for ours."""


def guidelines_of(project: Project, dimension: Dimension) -> str:
    """The Markdown that stands for a dimension."""
    return own_guidelines(project, dimension) or default_guidelines(dimension)


def own_guidelines(project: Project, dimension: Dimension) -> str:
    """The project's own Markdown for a dimension; empty: ours stands."""
    text: str = project.dimension_guidelines.get(dimension.value, "")
    return text.strip()


def default_guidelines(dimension: Dimension) -> str:
    """Our Markdown for a dimension."""
    texts = guidelines_zh_hans.TEXTS if _in_chinese() else guidelines_en.TEXTS
    return texts[dimension]


def as_html(markdown: str) -> str:
    """Safe to show: raw HTML in it is text, and links lead to no script."""
    return str(_MARKDOWN.render(markdown))


def phrases_of(project: Project, dimension: Dimension) -> list[str]:
    """Phrases to click into a rationale."""
    own: list[str] = project.phrases.get(dimension.value, [])
    return own or default_phrases(dimension)


def default_phrases(dimension: Dimension) -> list[str]:
    """Our phrases for a dimension."""
    phrases = guidelines_zh_hans.PHRASES if _in_chinese() else guidelines_en.PHRASES
    return list(phrases[dimension])


def default_examples(dimension: Dimension) -> list[ShownExample]:
    """Our drawn examples for a dimension."""
    captions = guidelines_zh_hans.CAPTIONS if _in_chinese() else guidelines_en.CAPTIONS
    return [
        ShownExample(
            left=static(f"guidelines/{name}-left.webp"),
            left_is_original=dimension in _BESIDE_THE_ORIGINAL or name == "extension-fine",
            right=static(f"guidelines/{name}-right.webp"),
            caption=captions[name],
            flawed=not name.endswith("-fine"),
        )
        for name in EXAMPLES[dimension]
    ]


def _in_chinese() -> bool:
    return (get_language() or "").startswith("zh")
