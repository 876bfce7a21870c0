"""Settings: what is unset has a default, what is wrong says so in one line, what is impossible together is a check."""

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from annotation_server import settings as module


def run_settings(tmp_path: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The settings as another process reads them from this environment and no other."""
    return subprocess.run(
        [sys.executable, "-c", f"from annotation_server import settings as s; {code}"],
        env={"PATH": os.environ["PATH"], "WINNOW_HOME": str(tmp_path / "home"), **env},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_new_home_needs_no_setting(tmp_path: Path) -> None:
    done = run_settings(tmp_path, "print(s.DEBUG, s.DATABASES['default']['NAME'], s.REDIS_URL)")
    home = tmp_path / "home"
    assert done.stdout.split() == ["False", f"{home}/winnow.sqlite3", f"redis+socket://{home}/queue.sock"]


def test_the_secret_key_is_made_once_and_is_the_owners(tmp_path: Path) -> None:
    first = run_settings(tmp_path, "print(s.SECRET_KEY)").stdout
    again = run_settings(tmp_path, "print(s.SECRET_KEY)").stdout
    assert first == again
    assert len(first.strip()) >= 50
    assert stat.S_IMODE((tmp_path / "home" / "secret_key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DEBUG", "yes", "use True or False"),
        ("PORT", "80a", "use a whole number from 1 to 65535"),
        ("PORT", "70000", "use a whole number from 1 to 65535"),
        ("MODEL", "gpt", "use one of local, none"),
        ("DATABASE_URL", "mysql://localhost/x", "use sqlite:// or postgresql://"),
        ("DATABASE_URL", "nonsense", "DATABASE_URL"),
        ("REDIS_URL", "amqp://localhost", "use redis://, rediss:// or redis+socket://"),
        ("PUBLIC_URL", "winnow.example", "use https://the.host"),
        ("PUBLIC_URL", "https://winnow.example/?a=1", "use https://the.host"),
        ("STORAGE_URL", "ftp://host/dir", "use file:///an/absolute/directory"),
        ("STORAGE_URL", "file://relative/dir", "use file:///an/absolute/directory"),
        ("WINNOW_SECRET_KEY", "short", "shorter than 32 characters"),
    ],
)
def test_a_wrong_value_says_so(tmp_path: Path, name: str, value: str, says: str) -> None:
    done = run_settings(tmp_path, "", **{name: value})
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert name in last
    assert says in last


def test_sqlite_serves_a_team() -> None:
    options = module.database("sqlite:////x/y.sqlite3")["OPTIONS"]
    assert options["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in options["init_command"]
    assert "synchronous=NORMAL" in options["init_command"]
    assert not module.database("sqlite:////x/y.sqlite3").get("ATOMIC_REQUESTS")


def test_a_long_home_gets_a_short_socket() -> None:
    home = Path("/" + "long/" * 40)
    assert len(os.fsencode(module.queue_socket(home))) < 100
    assert module.queue_socket(home) == module.queue_socket(home) != module.queue_socket(home / "other")


def test_a_home_with_odd_characters_keeps_its_paths(tmp_path: Path) -> None:
    home = tmp_path / "a #b %20c"
    code = "print(s.DATABASES['default']['NAME'], s.STORAGE_ROOT, sep='|')"
    done = run_settings(tmp_path, code, WINNOW_HOME=str(home))
    assert done.stdout.strip() == f"{home}/winnow.sqlite3|{home}/storage"


def test_env_helpers_refuse_an_unknown_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "true")
    with pytest.raises(ImproperlyConfigured, match="DEBUG='true'"):
        module.env_bool("DEBUG", False)


def found_ids() -> set[str]:
    return {message.id for message in run_checks(tags=["winnow"]) if message.id}


def test_the_defaults_pass_every_check() -> None:
    assert found_ids() == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"DEBUG": True, "ALLOWED_HOSTS": ["winnow.example.org"], "HTTPS": True}, {"winnow.E001"}),
        ({"BIND_ADDRESS": "192.0.2.1", "HTTPS": True}, {"winnow.E002"}),
        ({"PORT": 8000, "MODEL_PORT": 8000}, {"winnow.E003"}),
        ({"ALLOWED_HOSTS": ["winnow.example.org"]}, {"winnow.W001"}),
        ({"ALLOWED_HOSTS": ["*"], "HTTPS": True}, {"winnow.W002"}),
    ],
)
def test_impossible_together(changes: dict[str, object], expected: set[str]) -> None:
    with override_settings(**changes):
        assert found_ids() == expected


def settings_read() -> set[str]:
    """The names that settings.py reads from the environment."""
    tree = ast.parse(Path(module.__file__).read_text())
    return {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
        and ast.unparse(call.func) in {"os.getenv", "env_text", "env_bool", "env_int", "env_choice", "env_list"}
    }


def test_every_setting_is_documented_and_nothing_else(repository: Path) -> None:
    text = (repository / "docs" / "operator.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))
    assert documented == settings_read()
    assert len(documented) > 10
