"""Documents that cannot go stale: the tree in the README is the tree on disk, and links lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest


def folders_in_git(repository: Path) -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout: what belongs to it cannot be told from what lies in it")
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return {str(parent) for path in paths for parent in path.parents if str(parent) != "."}


def folders_in_readme(repository: Path) -> set[str]:
    """Lines of the tree that name a folder: two spaces per level, the name ends with a slash."""
    (tree,) = re.findall(r"^```tree\n(.*?)^```", (repository / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    above: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"^((?:  )*)(\S+)/ +\S", line)
        assert match, f"README's tree: {line!r} is not `name/  what it holds`"
        above = [*above[: len(match[1]) // 2], match[2]]
        found.add("/".join(above))
    return found


def test_the_readme_names_exactly_the_folders_that_exist(repository: Path) -> None:
    # Code has a line for every room and every app in it; fixtures, documents and benchmarks only for the room.
    undivided = ("fixtures/", "docs/", "benchmarks/")
    expected = {
        folder
        for folder in folders_in_git(repository)
        if folder.count("/") == 0 or (folder.count("/") == 1 and not folder.startswith(undivided))
    }
    assert folders_in_readme(repository) == expected


def test_links_between_documents_lead_somewhere(repository: Path) -> None:
    broken = [
        f"{page.relative_to(repository)}: {target}"
        for page in [*repository.glob("*.md"), *(repository / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_make_target_says_what_it_does(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split()
    told = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(told)
