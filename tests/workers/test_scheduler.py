"""The scheduler's loop: it ends cleanly when told to, and outlives a database that is away for a moment."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from django.core.management import call_command
from django.db import OperationalError

from annotation_server.jobs import services
from annotation_server.jobs.management.commands import run_scheduler
from annotation_server.jobs.services import Reconciled
from tests.workers.conftest import Processes


@pytest.fixture
def same_signals_afterwards() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("same_signals_afterwards")
def test_a_database_that_is_away_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passes: list[str] = []

    def reconcile() -> Reconciled:
        if not passes:
            passes.append("away")
            raise OperationalError("server closed the connection unexpectedly")
        passes.append("back")
        os.kill(os.getpid(), signal.SIGTERM)
        return Reconciled(sent=0, taken_back=0, given_up=0)

    monkeypatch.setattr(run_scheduler, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(services, "reconcile", reconcile)
    call_command("run_scheduler")
    assert passes == ["away", "back"]
    assert "The database is away: server closed the connection unexpectedly" in caplog.text


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_sigterm_ends_it_cleanly(processes: Processes) -> None:
    scheduler = processes.scheduler()
    with pytest.raises(subprocess.TimeoutExpired):
        scheduler.wait(4)
    scheduler.terminate()
    assert scheduler.wait(5) == 0
