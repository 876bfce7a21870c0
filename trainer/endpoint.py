"""Asks an OpenAI-compatible endpoint the contract's prompts, so that a large model and ours are evaluated alike.

Standard library only, one request at a time per call; the caller runs several in threads. Not here: the platform's
client with its ledger and budgets (annotation_workers/model_client.py), grading (evaluate.py).
"""

from __future__ import annotations

import base64
import datetime
import http.client
import json
import mimetypes
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from trainer.config import ConfigRefused, Refused, require
from trainer.contract.prompts import Prompt, openai_messages
from trainer.predictions import Answered

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_BUSY = frozenset({408, 409, 425, 429, 503, 529})
"""Of those, what says nothing against this request: it would be answered another time."""
_THIS_REQUEST = frozenset({400, 413, 422})
"""What it has against this request: too long, a filter. Asking another one may succeed."""
_LONGEST_PAUSE = 60.0


class EndpointFailed(Refused):
    """The endpoint gave no answer; the message names it and what came instead."""


class RequestRefused(EndpointFailed):
    """The endpoint will not answer this request; others it may."""


class RequestFailed(RequestRefused):
    """Every try of this request ended in an error of the server or in a reply that is no completion."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Whom to ask."""

    base_url: str
    """Up to and including /v1, as the OpenAI client takes it."""
    model: str
    """The model's name at the endpoint."""
    key_env: str = ""
    """Name of the environment variable that holds the key; empty sends none."""
    timeout_seconds: float = 120.0
    """Longest wait for one reply."""
    attempts: int = 6
    """Tries of a request that failed for a reason that may pass: 408, 409, 425, 429, 5xx, or no connection."""
    concurrency: int = 8
    """Requests under way at once."""
    options: str = ""
    """More of the request's body, as a JSON object: '{"reasoning_effort": "low"}'. It wins; null leaves a field out:
    '{"max_tokens": null, "max_completion_tokens": 4000, "temperature": null}' for models that want it so."""

    def __post_init__(self) -> None:
        require(
            self.base_url.startswith(("http://", "https://")),
            f"endpoint.base_url: expected http:// or https://, got {self.base_url!r}",
        )
        require(self.timeout_seconds > 0, f"endpoint.timeout_seconds must be positive, got {self.timeout_seconds}")
        require(self.attempts >= 1, f"endpoint.attempts must be at least 1, got {self.attempts}")
        require(self.concurrency >= 1, f"endpoint.concurrency must be at least 1, got {self.concurrency}")
        self.body_options()

    def body_options(self) -> dict[str, Any]:
        """`options`, read. ConfigRefused when it is no JSON object."""
        try:
            options = json.loads(self.options or "{}")
        except ValueError as error:
            raise ConfigRefused(f"endpoint.options: not JSON ({error})") from None
        require(isinstance(options, dict), f"endpoint.options: expected a JSON object, got {self.options}")
        return dict(options)

    def key(self) -> str | None:
        """The key. ConfigRefused when a variable is named and not set."""
        if not self.key_env:
            return None
        if not (key := os.environ.get(self.key_env)):
            raise ConfigRefused(f"endpoint.key_env: the environment variable {self.key_env} is not set")
        return key


def ask_endpoint(
    config: EndpointConfig,
    prompt: Prompt,
    images: Sequence[str],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    stopping: threading.Event | None = None,
) -> Answered:
    """The endpoint's completion of one prompt; `images` are data: URIs, the original first. Once `stopping` is set,
    nothing is tried again.

    Raises RequestRefused when it will not answer this one, RequestFailed when it could not after all tries,
    EndpointFailed when it answers none: nobody is there, it is too busy, or asks for another key.
    """
    body = {
        "model": config.model,
        "messages": openai_messages(prompt, images),
        "max_tokens": max_tokens,
        "temperature": temperature,
        **config.body_options(),
    }
    body = {name: value for name, value in body.items() if value is not None}
    began, stopping = time.monotonic(), stopping or threading.Event()
    for attempt in range(1, config.attempts + 1):
        try:
            return _answered(config, _post(config, body), began)
        except _MayPass as failure:
            # Requests that were turned away together shall not come back together.
            pause = 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - it guards nothing
            pause = min(max(pause, failure.retry_after), _LONGEST_PAUSE)
            if attempt == config.attempts or stopping.wait(pause):
                kind = RequestFailed if failure.of_request else EndpointFailed
                raise kind(f"{config.base_url}: {failure}, {attempt} times") from None
    raise AssertionError("the last attempt returns or raises")


def data_uri(name: str, data: bytes) -> str:
    """A file's bytes as a data: URI of the type that its name says."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class _MayPass(Exception):
    """A failure worth another try, after so many seconds; `of_request`: this request may be what fails."""

    def __init__(self, message: str, retry_after: float = 0.0, *, of_request: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.of_request = retry_after, of_request


def _post(config: EndpointConfig, body: dict[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key := config.key():
        headers["Authorization"] = f"Bearer {key}"
    url = config.base_url.rstrip("/") + "/chat/completions"
    # The scheme was checked to be http or https when the settings were read.
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=config.timeout_seconds) as reply:  # noqa: S310
            data: bytes = reply.read()
            return data
    except urllib.error.HTTPError as error:
        said = _said_by(error)
        if error.code in _RETRIED:
            pause = _retry_after(error.headers.get("Retry-After"))
            raise _MayPass(f"HTTP {error.code} {said}", pause, of_request=error.code not in _BUSY) from None
        kind = RequestRefused if error.code in _THIS_REQUEST else EndpointFailed
        raise kind(f"{config.base_url}: HTTP {error.code} {said}") from None
    except (OSError, http.client.HTTPException) as error:  # of TLS, too, which are no ConnectionError
        raise _MayPass(f"no reply ({getattr(error, 'reason', error)})") from None


def _said_by(error: urllib.error.HTTPError) -> str:
    """The beginning of an error's body in one line; empty where that does not come."""
    try:
        return " ".join(error.read(500).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return ""


def _retry_after(said: str | None) -> float:
    """Seconds to wait, from a header that says seconds or a date; 0 where it says neither."""
    try:
        return max(0.0, float(said or 0))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(said or "")
        return max(0.0, (until - datetime.datetime.now(until.tzinfo or datetime.UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _answered(config: EndpointConfig, data: bytes, began: float) -> Answered:
    """The first choice; a reasoning that came in a field of its own is put back before the answer."""
    try:
        reply = json.loads(data)
        message = reply["choices"][0]["message"]
        content = message.get("content") or ""
        if isinstance(content, list):  # some servers answer in parts
            content = "".join(part.get("text", "") for part in content)
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        usage = reply.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _MayPass(f"the reply is no chat completion ({error!r})", of_request=True) from None
    text = f"<think>{reasoning}</think>{content}" if reasoning and "</think>" not in content else str(content)
    return Answered(text=text, prompt_tokens=tokens[0], completion_tokens=tokens[1], seconds=time.monotonic() - began)
