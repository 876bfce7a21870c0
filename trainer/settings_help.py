"""Every setting of a command with what its field says about itself: what ``--help`` lists.

Read from the dataclasses' source, so that a setting cannot be without its word. Not here: reading settings (config.py).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer.config import expected


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is named in a file or after --set."""

    key: str
    """Dotted where it stands in a group: ``mining.mode``."""
    expected: str
    default: str
    about: str


def settings_of(kind: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a config dataclass, those of its groups after the group."""
    hints, docs = get_type_hints(kind), field_docs(kind)
    for field in fields(kind):
        hint = hints[field.name]
        group = _group(hint)
        yield Setting(prefix + field.name, expected(hint), _default(field, group), docs.get(field.name, ""))
        if group is not None:
            listed = "[]" if get_origin(hint) is tuple else ""
            yield from settings_of(group, f"{prefix}{field.name}{listed}.")


def settings_text(kind: type) -> str:
    """The settings for people, two lines and more each."""
    lines = []
    for setting in settings_of(kind):
        lines.append(f"  {setting.key}  ({setting.expected}{f'; {setting.default}' if setting.default else ''})")
        lines.append(textwrap.fill(setting.about, 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The string that stands below each field of a dataclass, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        (defined,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(defined, ast.ClassDef)  # noqa: S101 - a dataclass is a class
        for field, below in zip(defined.body, defined.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


def _group(hint: Any) -> type | None:
    """The dataclass that a setting is a group of, None where it is a value."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType, tuple) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _default(field: Field[Any], group: type | None) -> str:
    if group is not None and field.default_factory is not MISSING:
        return ""
    if field.default is MISSING and field.default_factory is MISSING:
        return "needed"
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return f"default {_shown(value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_shown, value)) or "empty"
    if isinstance(value, StrEnum | Path):
        return str(value)
    return "empty" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)
