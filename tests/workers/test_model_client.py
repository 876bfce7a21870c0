"""Reading what an endpoint sends, whatever it sends."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import openai
import pytest

from annotation_server.runs.models import Endpoint
from annotation_workers.model_client import (
    Failure,
    Means,
    ModelClient,
    Reply,
    Request,
    classify_status,
    encoded,
    read_reply,
    retry_after,
)
from tests.workers.conftest import FakeEndpoint
from tests.workers.fake_endpoint import completion

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Judge."}]}]


def ask(endpoint: Endpoint) -> Reply | Failure:
    async def call() -> Reply | Failure:
        async with ModelClient(endpoint) as client:
            return await client.complete(Request(MESSAGES, 0.0, 10), request_id=uuid.uuid4())

    return asyncio.run(call())


def test_pictures_are_written_into_a_body_as_json_would() -> None:
    said = 'She said: "no", and \\ \u2028'
    url = {"type": "image_url", "image_url": {"url": "https://winnow.example/a?b=%22"}}
    data = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + "QUJD/+" * 999, "detail": "low"}}
    body = {"model": 'm"', "messages": [{"role": "user", "content": [{"type": "text", "text": said}, data, url, data]}]}
    assert json.loads(encoded(body)) == body
    system = {"model": "m", "messages": [{"role": "system", "content": said}], "temperature": 0.5}
    assert json.loads(encoded(system)) == system


def at(fake: FakeEndpoint) -> Endpoint:
    return Endpoint(name="fake", base_url=f"{fake.base}/v1", model="m", timeout_seconds=5)


def test_it_works(fake: FakeEndpoint) -> None:
    reply = ask(at(fake))
    assert isinstance(reply, Reply)
    reading = read_reply(reply.body)
    assert (reading.text[:7], reading.input_tokens, reading.output_tokens) == ("<think>", 1000, 50)
    assert (reading.problem, reply.status) == ("", 200)


def test_the_library_makes_no_retries_of_its_own(fake: FakeEndpoint) -> None:
    fake.control(mode="error")
    ask(at(fake))
    assert [charge["calls"] for charge in fake.charges().values()] == [1]


def test_an_html_page_with_status_200_is_no_completion(fake: FakeEndpoint) -> None:
    """Why the client asks for the raw response: parsed, this page would be a plain str where a completion should be."""
    fake.control(mode="html")
    client = openai.OpenAI(base_url=f"{fake.base}/v1", api_key="none", max_retries=0)
    with client:
        parsed = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": [{"type": "text", "text": "Judge."}]}]
        )
    assert isinstance(parsed, str)  # type: ignore[unreachable]  # the library's types do not know
    reply = ask(at(fake))  # type: ignore[unreachable]
    assert read_reply(reply.body).problem == "not_json"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("", "not_json"),
        ("<html>", "not_json"),
        ("[" * 200_000, "not_json"),
        ("[]", "not_a_completion"),
        ('"ok"', "not_a_completion"),
        ("null", "not_a_completion"),
        ("{}", "no_choices"),
        ('{"choices": []}', "no_choices"),
        ('{"choices": {"0": 1}}', "no_choices"),
        ('{"choices": ["text"]}', "no_choices"),
        ('{"choices": [{"message": null}]}', "no_choices"),
        ('{"choices": [{"message": {"content": null}}]}', "empty_content"),
        ('{"choices": [{"message": {"content": ["parts"]}}]}', "empty_content"),
        ('{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}', "content_filter"),
        ('{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "refusal"),
    ],
)
def test_nonsense_has_a_name(body: str, problem: str) -> None:
    reading = read_reply(body)
    assert reading.problem == problem
    assert reading.detail


@pytest.mark.parametrize("usage", [None, [], "12", {"prompt_tokens": "many"}, {"prompt_tokens": -4}, {}])
def test_a_usage_that_makes_no_sense_counts_as_nothing(usage: object) -> None:
    reading = read_reply(json.dumps(completion("hello") | {"usage": usage}))
    assert (reading.text, reading.input_tokens, reading.output_tokens) == ("hello", 0, 0)


@pytest.mark.parametrize(
    ("status", "said", "means"),
    [
        (429, "rate limited", Means.BUSY),
        (429, "insufficient_quota", Means.RUN),
        (503, "", Means.BUSY),
        (500, "", Means.BROKEN),
        (502, "", Means.BROKEN),
        (400, "this model's maximum context length is 4096 tokens", Means.TASK),
        (400, "content_filter", Means.TASK),
        (400, "unknown field", Means.BAD_REQUEST),
        (413, "", Means.TASK),
        (401, "", Means.RUN),
        (403, "", Means.RUN),
        (404, "", Means.RUN),
        (418, "", Means.RUN),
    ],
)
def test_every_status_means_something(status: int, said: str, means: Means) -> None:
    assert classify_status(status, said)[0] is means


def test_nobody_at_the_address_was_charged_nothing() -> None:
    failure = ask(Endpoint(name="gone", base_url="http://127.0.0.1:9/v1", model="m", timeout_seconds=5))
    assert isinstance(failure, Failure)
    assert (failure.means, failure.reason) == (Means.UNREACHABLE, "unreachable")
    assert failure.detail.startswith("gone (http://127.0.0.1:9/v1) cannot be reached: ")


def test_retry_after_is_a_number_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after("1.5") == 1.5
    assert 25 < (retry_after(later) or 0) <= 30
    assert (retry_after("soon"), retry_after(None), retry_after("Mon, 01 Jan 2001 00:00:00 GMT")) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"cached_tokens": 640}, 640),
        ({"cached_tokens": 5000}, 1000),
        ({"cached_tokens": "many"}, 0),
        (None, 0),
        ([], 0),
    ],
)
def test_cached_tokens_are_some_of_the_input_tokens(details: object, cached: int) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "prompt_tokens_details": details}
    reading = read_reply(json.dumps(completion("hello") | {"usage": usage}))
    assert (reading.input_tokens, reading.cached_tokens, reading.output_tokens) == (1000, cached, 50)
