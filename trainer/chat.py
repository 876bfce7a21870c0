"""A chat completion request of the OpenAI protocol: read strictly, refused clearly, turned into a row of tokens.

What this server cannot do (response formats, tools, penalties, fetching URLs) is refused with a message that says so,
and so is a field it does not know: nothing that would change an answer is ignored. Messages in the form of
contract/prompts.py become the very tokens that training saw; others are laid out by the model's own chat template.
Not here: HTTP (serve.py), batching (batcher.py).
"""

from __future__ import annotations

import base64
import binascii
import difflib
import io
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from trainer.data import lay_out, plain_text, token_ids
from trainer.images import ImageTensor, image_grid, prepare_image, read_image
from trainer.model import Screener
from trainer.rollout import Sampling

_REFUSED = {
    "tools": "tools are not supported",
    "functions": "functions are not supported",
    "logit_bias": "logit_bias is not supported",
    "presence_penalty": "penalties are not supported",
    "frequency_penalty": "penalties are not supported",
    "audio": "audio is not supported",
    "web_search_options": "searching is not supported",
}
_READ = (
    *("model", "messages", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "response_format"),
)
_WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "tool_choice", "function_call", "modalities", "reasoning_effort", "verbosity"),
    "prediction",
)
"""Fields that change nothing here: who asks, caching, hints about speed, about tools, and about thinking."""
_MOST_ALTERNATIVES = 20
_ROLES = ("system", "developer", "user", "assistant")


class ApiError(Exception):
    """A request that gets no completion: an HTTP status and the OpenAI error that goes with it."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def to_json(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for."""

    max_completion_tokens: int
    max_choices: int
    max_images: int
    max_image_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request that can be answered."""

    model: str
    messages: list[dict[str, Any]]
    """As a chat template takes them: contents are lists of text and image parts."""
    images: list[Image.Image]
    """Upright RGB, in the order they are shown."""
    n: int
    sampling: Sampling
    length_named: bool
    """Whether the request says how long its completion may be; else it is as long as there is room."""
    stop: tuple[str, ...]
    top_logprobs: int | None
    """Tell the log-probability of every token, and of so many likeliest ones at its place. None: tell nothing."""
    stream: bool
    """Send the text as it is written."""
    include_usage: bool
    """End a stream with the usage."""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A request as the model reads it."""

    token_ids: list[int]
    positions: torch.Tensor
    """(3, tokens)"""
    images: list[ImageTensor]


def read_request(body: object, limits: Limits) -> ChatRequest:
    """The request in a decoded JSON body. ApiError names the field that is wrong or not supported."""
    if not isinstance(body, dict):
        raise _wrong("the body must be a JSON object", "invalid_body")
    for name, message in _REFUSED.items():
        if body.get(name):
            raise _wrong(message, "unsupported_parameter", name)
    form = body.get("response_format")
    if form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
        raise _wrong("response_format is not supported: only text is", "unsupported_parameter", "response_format")
    _refuse_unknown(body)
    stream = _flag(body, "stream")
    messages, images = _read_messages(body.get("messages"), limits)
    named = None
    for name in ("max_tokens", "max_completion_tokens"):  # the first is the protocol's older name for the second
        if body.get(name) is not None:
            named = _whole(body, name, 1, limits.max_completion_tokens)
    seed = random.getrandbits(31) if body.get("seed") is None else _whole(body, "seed", None)
    return ChatRequest(
        model=str(body.get("model") or ""),
        messages=messages,
        images=images,
        n=1 if body.get("n") is None else _whole(body, "n", 1, limits.max_choices),
        sampling=Sampling(
            max_new_tokens=limits.max_completion_tokens if named is None else named,
            temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
            top_p=max(_number(body, "top_p", 1.0, 0.0, 1.0), 1e-6),
            seed=seed % (1 << 40),
        ),
        length_named=named is not None,
        stop=_read_stop(body.get("stop")),
        top_logprobs=_read_logprobs(body),
        stream=stream,
        include_usage=_read_stream_options(body.get("stream_options"), stream),
    )


def chat_row(screener: Screener, request: ChatRequest, image_max_side: int | None) -> ChatRow:
    """Tokens, positions and prepared images of a request. ApiError for an image the model cannot read."""
    text: str = screener.tokenizer.apply_chat_template(
        _without_control_tokens(screener, request.messages), add_generation_prompt=True, tokenize=False
    )
    *pieces, tail = text.split(screener.image_placeholder)
    if len(pieces) != len(request.images):
        raise _wrong("the model's chat template does not show all images", "invalid_image", "messages")
    try:
        images = [prepare_image(screener, image, image_max_side) for image in request.images]
    except ValueError as error:
        raise _wrong(f"an image cannot be read by this model: {error}", "invalid_image", "messages") from None
    ids, positions = lay_out(screener, pieces, [image_grid(screener, image) for image in images])
    after = token_ids(screener, tail)
    start = int(positions.max()) + 1 if ids else 0
    positions = torch.cat([positions, (torch.arange(len(after)) + start).expand(3, -1)], dim=1)
    return ChatRow(ids + after, positions, images)


def _refuse_unknown(body: dict[str, Any]) -> None:
    known = {*_READ, *_REFUSED, *_WITHOUT_EFFECT}
    for name in body:
        if name not in known and body[name] is not None:
            near = difflib.get_close_matches(name, _READ, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise _wrong(f"{name[:60]!r} is not supported{hint}", "unsupported_parameter", name[:60])


def _read_logprobs(body: dict[str, Any]) -> int | None:
    wanted = _flag(body, "logprobs")
    if body.get("top_logprobs") is None:
        return 0 if wanted else None
    if not wanted:
        raise _wrong("top_logprobs needs logprobs to be true", "invalid_value", "top_logprobs")
    return _whole(body, "top_logprobs", 0, _MOST_ALTERNATIVES)


def _read_stream_options(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise _wrong("stream_options needs stream to be true", "invalid_value", "stream_options")
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise _wrong("stream_options must be an object of include_usage", "invalid_value", "stream_options")
    return _flag(options, "include_usage", "stream_options")


def _read_messages(messages: object, limits: Limits) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages must be a list of at least one message", "invalid_messages", "messages")
    found: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _wrong(f"{where}.role must be one of {', '.join(_ROLES)}", "invalid_messages", "messages")
        content = message.get("content")
        given = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(given, list):
            raise _wrong(f"{where}.content must be text or a list of parts", "invalid_messages", "messages")
        if any(name in message for name in ("tool_calls", "function_call", "audio")):
            raise _wrong(f"{where}: tool calls and audio are not supported", "unsupported_parameter", "messages")
        parts = [_read_part(part, f"{where}.content[{place}]", images, limits) for place, part in enumerate(given)]
        # The templates of these models know no developer; OpenAI's means what system meant.
        role = "system" if message["role"] == "developer" else message["role"]
        found.append({"role": role, "content": parts})
    return found, images


def _read_part(part: object, where: str, images: list[Image.Image], limits: Limits) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        try:
            part["text"].encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can say and no tokenizer can read
            raise _wrong(f"{where}.text is not Unicode text", "invalid_messages", "messages") from None
        return {"type": "text", "text": part["text"]}
    if isinstance(part, dict) and kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if len(images) == limits.max_images:
            raise _wrong(f"at most {limits.max_images} images are read", "too_many_images", "messages")
        images.append(_read_data_uri(url, where, limits))
        return {"type": "image"}
    raise _wrong(f"{where} must be a text or image_url part", "invalid_messages", "messages")


def _read_data_uri(url: object, where: str, limits: Limits) -> Image.Image:
    if not isinstance(url, str) or not url.startswith("data:"):
        raise _wrong(
            f"{where}: images must come as data: URIs; this server fetches nothing", "unsupported_image_url", "messages"
        )
    head, comma, encoded = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise _wrong(f"{where}: expected data:image/...;base64,...", "invalid_image", "messages")
    try:
        data = base64.b64decode(encoded, validate=True)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        if width * height > limits.max_image_pixels:
            raise _wrong(
                f"{where}: {width} x {height} pixels are more than {limits.max_image_pixels}",
                "invalid_image",
                "messages",
            )
        return read_image(data)
    except (binascii.Error, ValueError, OSError, Image.DecompressionBombError) as error:
        raise _wrong(f"{where}: not an image that can be read ({error})", "invalid_image", "messages") from None


def _read_stop(stop: object) -> tuple[str, ...]:
    given = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(given, list) or len(given) > 4 or not all(isinstance(one, str) and one for one in given):
        raise _wrong("stop must be a text or a list of up to four", "invalid_value", "stop")
    return tuple(given)


def _flag(body: dict[str, Any], name: str, param: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"{name} must be true or false", "invalid_value", param or name)
    return bool(value)


def _whole(body: dict[str, Any], name: str, low: int | None, high: int | None = None) -> int:
    value = body[name]
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or (low is not None and value < low) or (high is not None and value > high):
        bounds = "" if low is None else f" from {low}" + ("" if high is None else f" to {high}")
        raise _wrong(f"{name} must be a whole number{bounds}", "invalid_value", name)
    return int(value)


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = default if body.get(name) is None else body[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(f"{name} must be a number from {low:g} to {high:g}", "invalid_value", name)
    return float(value)


def _without_control_tokens(screener: Screener, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def clean(content: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for kind, parts in itertools.groupby(content, key=lambda part: part["type"]):
            if kind != "text":
                yield from parts
                continue
            # Templates write neighbouring texts without anything between: two of them could make one control token.
            yield {"type": "text", "text": plain_text(screener, "".join(part["text"] for part in parts))}

    return [{"role": one["role"], "content": list(clean(one["content"]))} for one in messages]


def _wrong(message: str, code: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, code, param)
