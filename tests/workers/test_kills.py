"""A run of a thousand tasks outlives twenty kills, an emptied broker and a crashed database, and its sums are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.postgresql import throw_away_postgresql

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("vendor", ["sqlite", "postgresql"])
def test_every_task_is_settled_once_and_no_charge_is_forgotten(vendor: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="wk-") as home,  # short: a socket's path is bounded
        throw_away_postgresql() if vendor == "postgresql" else nullcontext() as server,
    ):
        if vendor == "postgresql" and server is None:
            pytest.skip("needs postgresql: none is installed")
        command = [sys.executable, "-m", "tests.workers.killing", "--tasks", "1000", "--kills", "20"]
        database_url = f"sqlite:///{quote(home)}/winnow.sqlite3"
        if server is not None:
            database_url = server.url
            command += ["--postgresql", str(server.place)]
        env = {name: value for name, value in os.environ.items() if name not in ("STORAGE_URL",)}
        env |= {
            "DJANGO_SETTINGS_MODULE": "annotation_server.settings",
            "WINNOW_HOME": home,
            "DATABASE_URL": database_url,
            "REDIS_URL": f"redis+socket://{home}/q",
        }
        log = Path(home) / "log"
        with log.open("w") as errors:
            done = subprocess.run(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
            )
        assert done.returncode == 0, log.read_text()[-3000:]
    found = json.loads(done.stdout)
    print(vendor, found)

    assert found["kills"] == 20
    assert (found["state"], found["error"]) == ("done", "")
    assert found["tasks"] == {"accepted": 1000}
    assert found["annotations_per_task"] == {"1": 1000}
    # No completed call was repeated: a request went out once, and every task has one whose answer was kept.
    assert found["calls_per_request"].keys() == {"1"}
    assert found["completed_calls_per_task"] == {"1": 1000}
    # What was spent is what was charged for those; every other charge is an attempt of unknown outcome.
    assert found["charges_of_no_attempt"] == 0
    assert found["spent_tokens"] == found["charged_tokens_of_committed"] == 1050 * 1000
    assert Decimal(found["spent_usd"]) == Decimal(1050)
    assert Decimal(found["reserved_usd"]) == 0
    restarts = 1 if vendor == "postgresql" else 0
    assert 0 < found["charged_of_unknown_outcome"] <= found["concurrency"] * (found["kills"] + restarts)
