"""What annotators should know, per dimension, and the phrases at hand for their rationales.

A project's own text and phrases come first; where it has none, ours stand. Texts are Markdown without raw HTML. Not
here: the question and label of a dimension (wording.py), what models are told (trainer.contract.prompts).
"""

from __future__ import annotations

from markdown_it import MarkdownIt

from annotation_server.projects.models import Project
from trainer.contract.dimensions import Dimension

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")

DEFAULT_GUIDELINES: dict[Dimension, str] = {}
DEFAULT_PHRASES: dict[Dimension, tuple[str, ...]] = {}


def guidelines_of(project: Project, dimension: Dimension) -> str:
    """The Markdown that stands for a dimension."""
    own: str = project.dimension_guidelines.get(dimension.value, "")
    return own.strip() or DEFAULT_GUIDELINES.get(dimension, "")


def guidelines_html(project: Project, dimension: Dimension) -> str:
    """The project's general text, then the dimension's, as HTML that is safe to show."""
    return str(_MARKDOWN.render(f"{project.guidelines}\n\n{guidelines_of(project, dimension)}"))


def phrases_of(project: Project, dimension: Dimension) -> list[str]:
    """Phrases to click into a rationale."""
    own: list[str] = project.phrases.get(dimension.value, [])
    return own or list(DEFAULT_PHRASES.get(dimension, ()))
