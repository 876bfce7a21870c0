"""Our own server, asked by the platform's own client: the connection test finds what it can do, and what it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from django.conf import settings

from annotation_server.runs import services
from annotation_server.runs.models import Endpoint

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.needs_torch, pytest.mark.slow]


@pytest.fixture
def served() -> Iterator[Endpoint]:
    """The local model over `python -m trainer serve RUN`."""
    argv = [sys.executable, "-m", "trainer", "serve", "fixtures/local_screener", "--set", "port=0", "threads=1"]
    with subprocess.Popen(argv, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        yield services.create_endpoint(name="ours", base_url=url, model="local_screener", image_side=64)
        server.terminate()


def test_the_connection_test_finds_what_it_can_do(served: Endpoint, work: Callable[[], None]) -> None:
    test = services.start_endpoint_test(served)
    work()
    test.refresh_from_db()
    served.refresh_from_db()
    assert (test.ok, test.report["in_grammar"]) == (True, True)
    details = {name: probe["detail"] for name, probe in test.report["features"].items()}
    able = {"data_uri": True, "logprobs": True, "choices": True}
    assert served.found == able | {"json_schema": False, "batches": False}, details
    assert "response_format is not supported: only text is" in details["json_schema"]
    assert details["data_uri"].endswith("tokens of input")
