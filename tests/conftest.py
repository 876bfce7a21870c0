"""What every test may use, and what is skipped, with its reason, where a program is missing.

WINNOW_REQUIRE lists programs (postgresql, chromium, torch, trl) whose absence is a failure instead: .ci/run sets it, so that
nothing is left untested there without anybody noticing.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

REQUIRED = frozenset(os.getenv("WINNOW_REQUIRE", "").split(",")) - {""}
HAS_TORCH = importlib.util.find_spec("torch") is not None

# Test files of the trainer import torch when they are collected, before a marker could skip them.
collect_ignore = [] if HAS_TORCH or "torch" in REQUIRED else ["trainer"]


def find_chromium() -> str | None:
    if named := os.getenv("WINNOW_CHROMIUM"):
        return named
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing(program: str) -> str:
    """Why tests that need the program cannot run here; empty when they can."""
    match program:
        case "postgresql":
            if not os.getenv("DATABASE_URL", "").startswith("postgres"):
                return "DATABASE_URL names no PostgreSQL"
        case "chromium":
            if find_chromium() is None:
                return "no chromium on PATH and WINNOW_CHROMIUM names none"
        case "torch":
            if not HAS_TORCH:
                return "torch is not installed (MODEL=none)"
        case "trl":
            if importlib.util.find_spec("trl") is None:
                return "trl is not installed: pip install -e '.[peer]'"
        case other:
            raise ValueError(f"tests know no program {other!r}")
    return ""


def pytest_configure(config: pytest.Config) -> None:
    for program in sorted(REQUIRED):
        if reason := missing(program):
            pytest.exit(f"WINNOW_REQUIRE names {program}, but {reason}", returncode=1)


def pytest_report_header(config: pytest.Config) -> str:
    return "left out: tests/trainer, since torch is not installed" if collect_ignore else "nothing is left out"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for program in ("postgresql", "chromium", "torch", "trl"):
        if reason := missing(program):
            for item in items:
                if item.get_closest_marker(f"needs_{program}"):
                    item.add_marker(pytest.mark.skip(reason=f"needs {program}: {reason}"))


@pytest.fixture
def chromium() -> str:
    """The path of a browser, for tests marked needs_chromium."""
    found = find_chromium()
    assert found is not None, "mark the test needs_chromium"
    return found


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
