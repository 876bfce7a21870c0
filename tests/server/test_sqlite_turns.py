"""Writers of SQLite take turns, and nobody keeps the turn."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest
from django.db import connection, transaction

from annotation_server.projects.models import Project
from tests.server.factories import make_project

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has many writers"),
]


def test_it_works() -> None:
    """A transaction begins when the turn is its own: whoever has it is another process as well as another thread."""
    make_project()
    began = threading.Event()

    def write() -> None:
        with transaction.atomic():
            began.set()
        connection.close()

    writer = threading.Thread(target=write)
    with Path(f"{connection.settings_dict['NAME']}-turn").open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        writer.start()
        assert not began.wait(0.3)
    assert began.wait(10)
    writer.join()


@pytest.mark.parametrize("way", ["rolled back", "closed"])
def test_a_turn_ends_however_its_transaction_does(way: str) -> None:
    make_project()

    def work() -> None:
        try:
            with transaction.atomic():
                Project.objects.update(overlap=2)
                if way == "closed":
                    connection.close()
                raise LookupError
        except LookupError:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    with transaction.atomic():
        assert Project.objects.get().overlap == 1
