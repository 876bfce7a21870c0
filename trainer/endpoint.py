"""Asks an OpenAI-compatible endpoint the contract's prompts, so that a large model and ours are evaluated alike.

Standard library only, one request at a time per call; the caller runs several in threads. Not here: the platform's
client with its ledger and budgets (annotation_workers/model_client.py), grading (evaluate.py).
"""

from __future__ import annotations

import base64
import http.client
import json
import mimetypes
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import ConfigRefused, Refused, require
from trainer.contract.prompts import Prompt, openai_messages

_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})


class EndpointFailed(Refused):
    """The endpoint gave no answer; the message names it and what came instead."""


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
    attempts: int = 3
    """Tries of a request that failed for a reason that may pass: 408, 409, 429, 5xx, or no connection."""
    concurrency: int = 8
    """Requests under way at once."""

    def __post_init__(self) -> None:
        require(
            self.base_url.startswith(("http://", "https://")),
            f"endpoint.base_url: expected http:// or https://, got {self.base_url!r}",
        )
        require(self.timeout_seconds > 0, f"endpoint.timeout_seconds must be positive, got {self.timeout_seconds}")
        require(self.attempts >= 1, f"endpoint.attempts must be at least 1, got {self.attempts}")
        require(self.concurrency >= 1, f"endpoint.concurrency must be at least 1, got {self.concurrency}")

    def key(self) -> str | None:
        """The key. ConfigRefused when a variable is named and not set."""
        if not self.key_env:
            return None
        if not (key := os.environ.get(self.key_env)):
            raise ConfigRefused(f"endpoint.key_env: the environment variable {self.key_env} is not set")
        return key


def ask_endpoint(
    config: EndpointConfig, prompt: Prompt, images: Sequence[Path], *, max_tokens: int, temperature: float = 0.0
) -> str:
    """The endpoint's completion of one prompt; `images` are files, the original first. Raises EndpointFailed."""
    body = {
        "model": config.model,
        "messages": openai_messages(prompt, [data_uri(path) for path in images]),
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    for attempt in range(1, config.attempts + 1):
        try:
            return _completion_text(config, _post(config, body))
        except _MayPass as failure:
            if attempt == config.attempts:
                raise EndpointFailed(f"{config.base_url}: {failure}, {attempt} times") from None
            time.sleep(min(2.0 ** (attempt - 1), 10.0))
    raise AssertionError("the last attempt returns or raises")


def data_uri(path: Path) -> str:
    """A file's bytes as a data: URI of its type by name."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


class _MayPass(Exception):
    """A failure worth another try."""


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
        said = error.read(500).decode(errors="replace").strip()
        if error.code in _RETRIED:
            raise _MayPass(f"HTTP {error.code} {said}") from None
        raise EndpointFailed(f"{config.base_url}: HTTP {error.code} {said}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _MayPass(f"no reply ({getattr(error, 'reason', error)})") from None


def _completion_text(config: EndpointConfig, data: bytes) -> str:
    """The text of the first choice; a reasoning that came in a field of its own is put back before the answer."""
    try:
        message = json.loads(data)["choices"][0]["message"]
        content = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointFailed(f"{config.base_url}: the reply is no chat completion ({error})") from None
    return f"<think>{reasoning}</think>{content}" if reasoning and "</think>" not in content else str(content)
