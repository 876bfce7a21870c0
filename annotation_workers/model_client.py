"""The OpenAI-compatible client: the only platform code that talks to a model.

One call makes one request (the library's hidden retries are off: they would bypass the ledger) and ends as a Reply, the
response word for word, or as a Failure that says what it means for the task and the run. `read_reply` finds completion
and usage in a response's body and never raises, so that a stored one can be read again after a crash.
Not here: pictures (pictures.py), prompts and judging (automated.py, answer_driven.py), the ledger (annotate.py).
"""

from __future__ import annotations

import json
import os
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpx2
import openai

from annotation_server.runs.models import Endpoint
from annotation_workers.deliveries import Deliveries

MAX_BODY_CHARS = 2_000_000
"""More of a response than this is not kept; a completion of 512 tokens is a thousandth of it."""
_CONNECT_SECONDS = 10.0


class Means(StrEnum):
    """What a failed call means for the work."""

    UNREACHABLE = "unreachable"
    """Nobody answers at the address: nothing was charged, no task is to blame, try again later."""
    BUSY = "busy"
    """The endpoint is there and wants fewer requests: wait, then the same call again."""
    UNKNOWN = "unknown"
    """The request went out and no whole answer came: it may have been charged."""
    BROKEN = "broken"
    """The endpoint answered with an error of its own: another attempt may succeed."""
    TASK = "task"
    """This task will never be answered: the prompt is too long, or a filter refuses it."""
    RUN = "run"
    """No call of the run will ever be answered: a wrong key, model or address."""
    BAD_REQUEST = "bad_request"
    """The endpoint calls the request wrong: the task's fault where others were answered, else the run's."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a call says, beside its model."""

    messages: Sequence[dict[str, Any]]
    temperature: float
    max_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else its body says."""

    def body(self, model: str) -> dict[str, Any]:
        """It as JSON."""
        said = {"model": model, "messages": self.messages, "temperature": self.temperature}
        return said | {"max_tokens": self.max_tokens, **self.options}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response of status 200, not yet read."""

    body: str
    status: int
    latency_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A call without one. `reason` is a countable word, `detail` one line for people."""

    means: Means
    reason: str
    detail: str
    status: int | None = None
    body: str = ""
    latency_ms: int
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a response's body says. `problem` is why there is no completion in it, in a countable word, else empty."""

    text: str = ""
    problem: str = ""
    detail: str = ""
    final: bool = False
    """Asking the same again would get the same problem."""
    input_tokens: int = 0
    cached_tokens: int = 0
    """Of the input tokens, those the endpoint had in its cache."""
    output_tokens: int = 0
    others: tuple[str, ...] = ()
    """Further completions, where several were asked for and came."""
    tokens: tuple[tuple[str, float], ...] = ()
    """The first completion's tokens with their log-probabilities, where they were asked for and came."""


def encoded(body: Mapping[str, Any]) -> bytes:
    """A request's body as JSON. Its pictures, which are nearly all of it, go in as they are: base64 has no character
    that JSON writes otherwise, and looking at each of them takes longer than sending them."""
    pictures: list[str] = []
    mark = uuid.uuid4().hex

    def set_aside(part: dict[str, Any]) -> dict[str, Any]:
        url = part["image_url"]["url"] if part["type"] == "image_url" else ""
        if not url.startswith("data:"):
            return part
        pictures.append(url)
        return part | {"image_url": part["image_url"] | {"url": mark}}

    messages = [
        message | {"content": [set_aside(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in body["messages"]
    ]
    between = json.dumps(dict(body) | {"messages": messages}).split(mark)
    woven = [text for pair in zip(between, [*pictures, ""], strict=True) for text in pair]
    return "".join(woven).encode()


class EndpointUnusable(Exception):
    """The endpoint cannot be called as it is set up; the message is one line."""


class ModelClient:
    """One endpoint, for many calls at once: `async with ModelClient(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._key = api_key(endpoint)
        self._model = endpoint.model
        self._where = f"{endpoint.name} ({endpoint.base_url})"
        self._base_url = endpoint.base_url
        self._timeout = httpx2.Timeout(
            endpoint.timeout_seconds, connect=min(_CONNECT_SECONDS, float(endpoint.timeout_seconds))
        )
        self._deliveries = Deliveries()
        self._clients = [self._make_client(openai.DefaultAioHttpClient(timeout=self._timeout, verify=_trusted()))]

    def _make_client(self, http_client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self._base_url,
            # A local server wants no key, the library wants some text.
            api_key=self._key or "none",
            max_retries=0,
            timeout=self._timeout,
            http_client=http_client,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.close()

    async def complete(self, request: Request, *, request_id: uuid.UUID) -> Reply | Failure:
        """Make one request.

        By the library's own door for paths it does not know: `chat.completions.create` walks through every part of
        every message, which costs more than all the rest, and returns an HTML page as a plain str.
        """
        started = time.monotonic()
        try:
            response = await self._clients[-1].post(
                "/chat/completions",
                cast_to=httpx2.Response,
                content=encoded(request.body(self._model)),
                options={"headers": {"Content-Type": "application/json", "X-Request-ID": str(request_id)}},
            )
        except openai.APIStatusError as error:
            return self._status_failure(error, _since(started))
        except openai.APIConnectionError as error:
            return self._connection_failure(error, _since(started))
        body = self._without_key(storable(response.text[:MAX_BODY_CHARS]))
        if self._deliveries.came_before(body):
            return self._delivered_twice(body, response.status_code, _since(started))
        return Reply(body=body, status=response.status_code, latency_ms=_since(started))

    async def get(self, path: str) -> Reply | Failure:
        """What the endpoint tells without being asked to complete anything."""
        started = time.monotonic()
        try:
            response = await self._clients[-1].get(path, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            return self._status_failure(error, _since(started))
        except openai.APIConnectionError as error:
            return self._connection_failure(error, _since(started))
        body = self._without_key(storable(response.text[:MAX_BODY_CHARS]))
        return Reply(body=body, status=response.status_code, latency_ms=_since(started))

    def _delivered_twice(self, body: str, status: int, latency_ms: int) -> Failure:
        """An answer to an earlier request: what this one was answered nobody knows. Where that is sure, every request
        has a connection of its own from now on, in which nothing can lie."""
        if self._deliveries.is_sure and len(self._clients) == 1:
            alone = httpx2.Limits(max_connections=1000, max_keepalive_connections=0)
            own = openai.DefaultAsyncHttpxClient(limits=alone, timeout=self._timeout, verify=_trusted())
            self._clients.append(self._make_client(own))
        return Failure(
            means=Means.UNKNOWN,
            reason="delivered_twice",
            detail=f"{self._where} delivered the answer to an earlier request again",
            status=status,
            body=body,
            latency_ms=latency_ms,
        )

    def _connection_failure(self, error: openai.APIConnectionError, latency_ms: int) -> Failure:
        cause = error.__cause__
        what = self._without_key(str(cause) or type(cause).__name__)
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
            detail = f"{self._where} cannot be reached: {what}"
            return Failure(means=Means.UNREACHABLE, reason="unreachable", detail=detail, latency_ms=latency_ms)
        if isinstance(error, openai.APITimeoutError):
            detail = f"{self._where} did not answer in time"
            return Failure(means=Means.UNKNOWN, reason="timeout", detail=detail, latency_ms=latency_ms)
        detail = f"{self._where} broke the connection: {what}"
        return Failure(means=Means.UNKNOWN, reason="connection_lost", detail=detail, latency_ms=latency_ms)

    def _status_failure(self, error: openai.APIStatusError, latency_ms: int) -> Failure:
        status = error.status_code
        body = self._without_key(storable(error.response.text[:MAX_BODY_CHARS]))
        said = error_message(body)
        means, reason = classify_status(status, f"{error.code or ''} {error.type or ''} {said}".lower())
        return Failure(
            means=means,
            reason=reason,
            detail=f"{self._where} answered {status}: {said}",
            status=status,
            body=body,
            latency_ms=latency_ms,
            retry_after=retry_after(error.response.headers.get("retry-after")),
        )

    def _without_key(self, text: str) -> str:
        # Some servers repeat a key they refuse; keys are never stored or logged.
        return text.replace(self._key, "[key]") if self._key else text


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities a server's certificate may be of; reading them takes longer than a call."""
    return httpx2.create_ssl_context()


def api_key(endpoint: Endpoint) -> str:
    """From the environment; empty where it wants none. Raises EndpointUnusable where it is not set."""
    if not endpoint.api_key_env:
        return ""
    key = os.environ.get(endpoint.api_key_env, "")
    if not key:
        raise EndpointUnusable(
            f"endpoint {endpoint.name}: the environment variable {endpoint.api_key_env} that holds its key "
            "is not set where the workers run"
        )
    return key


def classify_status(status: int, said: str) -> tuple[Means, str]:
    """What an error status means, and its countable reason. `said`: the error's code, type and message, lower case."""
    if "context_length" in said or "context length" in said or "maximum context" in said or status == 413:
        return Means.TASK, "context_length"
    if "content_filter" in said or "content management policy" in said or "content_policy" in said:
        return Means.TASK, "content_filter"
    if "insufficient_quota" in said or status == 402:
        return Means.RUN, "quota"
    match status:
        case 429:
            return Means.BUSY, "rate_limit"
        case 503 | 529:
            return Means.BUSY, "overloaded"
        case 400 | 422:
            return Means.BAD_REQUEST, "bad_request"
        case 401 | 403:
            return Means.RUN, "unauthorised"
        case 404 | 405:
            return Means.RUN, "not_found"
        case status if status >= 500:
            return Means.BROKEN, "server_error"
    return Means.RUN, f"status_{status}"


def retry_after(header: str | None) -> float | None:
    """The header's wait in seconds; it may be a number or a date. None where there is none or it is neither."""
    if header is None:
        return None
    if header.strip().replace(".", "", 1).isdigit():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds()) if until.tzinfo else None


def read_reply(body: str) -> Reading:
    """The completion and usage in a response's body, whatever the body is."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):  # the latter where brackets are nested by the thousand
        return Reading(problem="not_json", detail=f"the response is not JSON: {_start(body)}")
    if not isinstance(data, dict):
        return Reading(problem="not_a_completion", detail=f"the response is no completion: {_start(body)}")
    if "custom_id" in data:
        data = _of_batch(data)
    spent = _usage(data)

    def problem(word: str, detail: str, final: bool = False) -> Reading:
        return replace(spent, problem=word, detail=detail, final=final)

    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return problem("no_choices", f"the response holds no choices: {_start(body)}")
    if choice.get("finish_reason") == "content_filter":
        return problem("content_filter", "the endpoint's content filter cut the completion", final=True)
    if message.get("refusal"):
        return problem("refusal", f"the model refused: {_start(str(message['refusal']))}")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        return problem("empty_content", "the completion is empty")
    others = [_content(other) for other in data["choices"][1:]]
    return replace(
        spent, text=storable(text), others=tuple(storable(one) for one in others if one), tokens=_logprobs(choice)
    )


def _of_batch(line: dict[str, Any]) -> dict[str, Any]:
    """The response in a line of a batch's results, which is kept as it came."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    return body if isinstance(body, dict) else {}


def _content(choice: object) -> str:
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    return text if isinstance(text, str) else ""


def _logprobs(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list):
        return ()
    rows = [(row.get("token"), row.get("logprob")) for row in content if isinstance(row, dict)]
    return tuple(
        (token, float(logprob))
        for token, logprob in rows
        if isinstance(token, str) and isinstance(logprob, int | float)
    )


def _usage(data: dict[str, Any]) -> Reading:
    """The tokens a response says were used; what makes no sense counts as nothing."""
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    input_tokens = _tokens(usage.get("prompt_tokens"))
    return Reading(
        input_tokens=input_tokens,
        cached_tokens=min(_tokens(cached), input_tokens),
        output_tokens=_tokens(usage.get("completion_tokens")),
    )


def storable(text: str) -> str:
    """Text a database takes: PostgreSQL keeps no NUL, UTF-8 no half of a surrogate pair; models send both."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def _tokens(value: object) -> int:
    # Columns hold 31 bits; what claims more than that, or less than nothing, is no count of tokens.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


def error_message(body: str) -> str:
    """What an error's body says, in one line."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return _start(body)
    error = data.get("error", data) if isinstance(data, dict) else data
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return _start(str(message or body))


def _start(text: str) -> str:
    return " ".join(text.split())[:200] or "(nothing)"


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
