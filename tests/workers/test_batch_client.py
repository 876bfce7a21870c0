"""The endpoint's Batch API over the wire: files both ways, batches made, found, cancelled, and what failures mean."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from annotation_server.runs.models import Endpoint
from annotation_workers import batch_client
from annotation_workers.batch_client import BatchClient, BatchFailure
from annotation_workers.model_client import Means
from tests.workers.conftest import FakeEndpoint, MakeEndpoint

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "5a0a1c2e-0000-4000-8000-000000000001"


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    return make_endpoint()


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[BatchClient]:
    with BatchClient(endpoint) as client:
        yield client


def requests(count: int = 1, text: str = "Say hello.") -> io.BytesIO:
    body = {"model": "fake", "messages": [{"role": "user", "content": text}]}
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(count)
    ]
    return io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())


def test_it_works(fake: FakeEndpoint, client: BatchClient) -> None:
    made = client.create(client.upload("a.jsonl", requests(2)), KEY)
    assert (made.key, made.created_at.tzinfo is not None) == (KEY, True)
    now = client.retrieve(made.batch_id)
    assert (now.status, now.answered, now.failed, now.error_file_id) == ("completed", 2, 0, "")
    results = io.BytesIO()
    client.download(now.output_file_id, results)
    lines = [json.loads(line) for line in results.getvalue().splitlines()]
    assert [line["custom_id"] for line in lines] == ["r0", "r1"]
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello!"
    assert {name: charge["calls"] for name, charge in fake.charges().items()} == {"r0": 1, "r1": 1}


def test_a_batch_is_found_by_its_key_or_its_file_behind_many_others(
    client: BatchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_client, "PER_PAGE", 3)
    since = timezone.now()
    file = client.upload("a.jsonl", requests())
    made = client.create(file, KEY)
    for _ in range(7):
        client.create(client.upload("b.jsonl", requests()), "another")
    assert (found := client.find(KEY, "file-unknown", since)) is not None
    assert found.batch_id == made.batch_id
    assert (found := client.find("unknown", file, since)) is not None
    assert found.batch_id == made.batch_id
    assert client.find("unknown", "file-unknown", since) is None
    assert client.find(KEY, file, timezone.now() + timedelta(days=1)) is None


def test_a_batch_that_failed_is_not_found(fake: FakeEndpoint, client: BatchClient) -> None:
    fake.control(batch_mode="failed")
    made = client.create(client.upload("a.jsonl", requests()), KEY)
    failed = client.retrieve(made.batch_id)
    assert (failed.status, failed.error_code, failed.error) == ("failed", "invalid_json_line", "It is failed.")
    assert client.find(KEY, made.file_id, made.created_at) is None


def test_cancelling_spares_what_was_not_begun(fake: FakeEndpoint, client: BatchClient) -> None:
    fake.control(batch_delay=60)
    made = client.create(client.upload("a.jsonl", requests(4)), KEY)
    assert client.retrieve(made.batch_id).status == "in_progress"
    client.cancel(made.batch_id)
    now = client.retrieve(made.batch_id)
    assert (now.status, now.answered, now.failed) == ("cancelled", 2, 2)


@pytest.mark.parametrize(
    ("mode", "means", "said"),
    [
        ("unauthorised", Means.RUN, "answered 401: Incorrect API key"),
        ("rate_limit", Means.BUSY, "answered 429: slow down"),
        ("error", Means.BROKEN, "answered 500: something broke"),
    ],
)
def test_what_a_refusal_means(fake: FakeEndpoint, client: BatchClient, mode: str, means: Means, said: str) -> None:
    fake.control(api_script=[mode])
    with pytest.raises(BatchFailure) as failed:
        client.create("file-1", KEY)
    assert (failed.value.means, said in str(failed.value)) == (means, True)


def test_nobody_there(make_endpoint: MakeEndpoint) -> None:
    with (
        BatchClient(make_endpoint(name="gone", base_url="http://127.0.0.1:9/v1")) as client,
        pytest.raises(BatchFailure) as failed,
    ):
        client.retrieve("batch_1")
    assert failed.value.means is Means.UNREACHABLE


def test_what_is_no_list_is_not_taken_for_an_empty_one(fake: FakeEndpoint, client: BatchClient) -> None:
    """A second batch would be made, and paid for."""
    fake.control(api_script=["html", "html"])
    with pytest.raises(BatchFailure, match="is not JSON"):
        client.find(KEY, "file-1", timezone.now())
    with pytest.raises(BatchFailure, match="is not a batch"):
        client.retrieve("batch_1")


def test_a_file_goes_up_and_comes_down_without_being_held_in_memory(client: BatchClient, tmp_path: Path) -> None:
    place = tmp_path / "large.jsonl"
    line = requests(1, "x" * 1_000_000).getvalue()
    with place.open("wb") as file:
        for _ in range(40):
            file.write(line)
    tracemalloc.start()
    with place.open("rb") as file:
        name = client.upload("large.jsonl", file)
    with place.open("wb") as file:
        client.download(name, file)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert place.stat().st_size == 40 * len(line)
    assert most < 8_000_000
