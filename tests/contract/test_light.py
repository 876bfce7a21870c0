"""What a machine need not install: the contract needs only Python, the server no torch, the trainer no Django."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_the_contract_imports_only_the_standard_library(repository: Path) -> None:
    files = sorted((repository / "trainer" / "contract").rglob("*.py"))
    assert len(files) > 3
    foreign = {
        f"{path.name}: {name}"
        for path in files
        for name in imported_modules(path)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("trainer.contract")
    }
    assert foreign == set()


def test_the_contract_works_where_nothing_is_installed(repository: Path) -> None:
    """-I -S: no site-packages, no environment; only this directory on the path."""
    modules = sorted(path.stem for path in (repository / "trainer" / "contract").glob("[a-z]*.py"))
    imports = "".join(f"import trainer.contract.{name};" for name in modules)
    code = f"import sys; sys.path.insert(0, {str(repository)!r}); {imports} print(len(sys.modules))"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


def run_without(repository: Path, absent: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run the code where importing any of `absent` fails as if it were not installed."""
    blocker = f"""
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (left out by the test)", name=name)
sys.meta_path.insert(0, NotInstalled())
"""
    return subprocess.run(
        [sys.executable, "-c", blocker + code], cwd=repository, capture_output=True, text=True, check=False, timeout=100
    )


def test_the_blocker_blocks(repository: Path) -> None:
    done = run_without(repository, ["django"], "import annotation_server.settings")
    assert done.returncode == 1
    assert "left out by the test" in done.stderr


def test_the_server_and_the_workers_need_no_torch(repository: Path, tmp_path: Path) -> None:
    code = f"""
import os, pkgutil, importlib
os.environ.update(WINNOW_HOME={str(tmp_path)!r}, DJANGO_SETTINGS_MODULE="annotation_server.settings")
import django
django.setup()
import annotation_server, annotation_workers
for package in (annotation_server, annotation_workers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
    done = run_without(repository, ["torch", "transformers", "safetensors"], code)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs_torch
def test_the_trainer_needs_no_django(repository: Path) -> None:
    code = """
import pkgutil, importlib, trainer
for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    done = run_without(
        repository, ["django", "celery", "kombu", "redis", "annotation_server", "annotation_workers"], code
    )
    assert done.returncode == 0, done.stderr
