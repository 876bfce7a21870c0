"""The connection test of an endpoint: the prompt of the contract with tiny drawn pictures, then what it can do beside.

What an endpoint accepts says little: some ignore a response format, log-probabilities or `n` with a 200, some refuse
them with a 400. So each feature is asked for in a way that shows in the answer where it is there, and the answer is
looked at. Not here: runs (annotate.py), what a feature is used for.
"""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from PIL import Image as Pillow

from annotation_server.runs import services as runs_services
from annotation_server.runs.costs import Spent, cost_of
from annotation_server.runs.models import Endpoint, EndpointTest, Feature
from annotation_workers import automated
from annotation_workers.model_client import (
    EndpointUnusable,
    Failure,
    Means,
    ModelClient,
    Reading,
    Reply,
    Request,
    read_reply,
)
from annotation_workers.pictures import data_uri
from annotation_workers.verdicts import Question, Rejected, read_and_check
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.prompts import openai_messages

_QUESTION = Question(dimension=Dimension.PHYSICAL_SHADOW, polarity=Polarity.ACCEPTABLE, candidates=4)
_SIDE = 64
_MAX_TOKENS = 256
_PROBE_TOKENS = 32
_COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
_SENTINEL = "winnow-7351"
"""Nothing in the question leads to it: only the schema does."""
_NO_SUCH_THING = (400, 403, 404, 405, 422, 501)
_PUBLIC_PICTURE = "/static/guidelines/appearance-fine-left.webp"
"""A picture of ours that anybody may fetch."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe showed of a feature."""

    works: bool | None
    """None where it showed nothing: what was known before stands."""
    detail: str


def call_once(test: EndpointTest) -> None:
    """Ask, and write down in the test's row what came back. A test that was answered is not repeated."""
    if test.ok is not None:
        return
    spent = Spent()
    try:
        ok, report, findings = asyncio.run(_test(test.endpoint, spent))
    except EndpointUnusable as error:
        runs_services.record_endpoint_test(test.pk, ok=False, report={"reason": "unusable", "detail": str(error)})
        return
    report["features"] = {
        feature.value: {"works": finding.works, "detail": finding.detail} for feature, finding in findings.items()
    }
    found = {feature.value: finding.works for feature, finding in findings.items() if finding.works is not None}
    runs_services.record_endpoint_test(test.pk, ok=ok, report=report, found=found, spent=spent)


class _CountingClient(ModelClient):
    """Adds up what its answers took. Of a call that was never answered nobody knows."""

    def __init__(self, endpoint: Endpoint, spent: Spent) -> None:
        super().__init__(endpoint)
        self._priced, self._spent = endpoint, spent

    async def complete(self, *args: Any, **options: Any) -> Reply | Failure:
        result = await super().complete(*args, **options)
        self._spent.calls += 1
        if isinstance(result, Reply):
            said = read_reply(result.body)
            self._spent.input_tokens += said.input_tokens
            self._spent.output_tokens += said.output_tokens
            self._spent.cost_usd += cost_of(self._priced, said.input_tokens, said.output_tokens, said.cached_tokens)
        return result


async def _test(endpoint: Endpoint, spent: Spent) -> tuple[bool, dict[str, object], dict[Feature, Finding]]:
    # Questions about the endpoint, not about a run: none of them waits long.
    async with _CountingClient(endpoint, spent) as client:
        prompt = automated.build_prompt(_QUESTION)
        shades = [_picture((shade, shade, shade)) for shade in (230, 200, 170, 140, 110)]
        result = await _ask(client, openai_messages(prompt, shades), max_tokens=_MAX_TOKENS)
        if isinstance(result, Failure):
            return *_failure(result), {}
        ok, report = _reply(result)
        # Where it answers nonsense, or is a proxy's page, its features mean nothing.
        return ok, report, {feature: await probe(client) for feature, probe in PROBES.items()} if ok else {}


async def _ask(
    client: ModelClient, messages: list[dict[str, Any]], max_tokens: int = _PROBE_TOKENS, **options: Any
) -> Reply | Failure:
    return await client.complete(Request(messages, 0.0, max_tokens, options), request_id=uuid.uuid4())


async def reads_data_uris(client: ModelClient) -> Finding:
    """Pictures of one colour each: it names them, or they take up input."""
    bare = await _seen(client, "")
    if isinstance(bare, Finding):
        return bare
    named: list[bool] = []
    most = bare
    for colour, rgb in _COLOURS.items():
        seen = await _seen(client, _picture(rgb))
        if isinstance(seen, Finding):
            return seen
        named.append(colour in seen.text.lower())
        most = seen
    if all(named):
        return Finding(True, "it named the colours of two pictures")
    return _by_input(bare, most)


async def fetches_images(client: ModelClient) -> Finding:
    """The same with a picture of ours that it has to fetch."""
    if not settings.PUBLIC_URL:
        return Finding(None, "not tried: the setting PUBLIC_URL does not say where it could fetch images")
    bare = await _seen(client, "")
    seen = bare if isinstance(bare, Finding) else await _seen(client, settings.PUBLIC_URL + _PUBLIC_PICTURE)
    if isinstance(bare, Finding):
        return bare
    return seen if isinstance(seen, Finding) else _by_input(bare, seen)


async def _seen(client: ModelClient, url: str) -> Reading | Finding:
    """What it says of a picture, or of none; a finding where it refuses the request."""
    content: list[dict[str, Any]] = [{"type": "text", "text": "Which colour fills the picture? Answer in one word."}]
    if url:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    result = await _ask(client, [{"role": "user", "content": content}])
    return _refusal(result) if isinstance(result, Failure) else read_reply(result.body)


def _by_input(bare: Reading, seen: Reading) -> Finding:
    more = seen.input_tokens - bare.input_tokens
    if more > 0:
        return Finding(True, f"a picture takes {more} tokens of input")
    if seen.input_tokens:
        return Finding(False, "it answered as if there were no picture: it takes up no input")
    return Finding(None, "it answered and reports no tokens: nothing shows whether it saw the picture")


async def answers_in_a_schema(client: ModelClient) -> Finding:
    """A schema that allows one word, which nobody would say otherwise."""
    schema = {
        "type": "object",
        "properties": {"greeting": {"type": "string", "enum": [_SENTINEL]}},
        "required": ["greeting"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "greeting", "strict": True, "schema": schema}}
    result = await _ask(client, _words("Say hello."), response_format=wanted)
    if isinstance(result, Failure):
        return _refusal(result)
    text = read_reply(result.body).text
    if _parsed(text) == {"greeting": _SENTINEL}:
        return Finding(True, "it answered in the schema it was given")
    return Finding(False, f"it took the schema with a 200 and ignored it: {text.strip()[:60]!r}")


async def tells_logprobs(client: ModelClient) -> Finding:
    """Log-probabilities of the tokens it wrote."""
    result = await _ask(client, _words("Say hello."), logprobs=True)
    if isinstance(result, Failure):
        return _refusal(result)
    choice = next(iter(_choices(result)), {})
    told = choice.get("logprobs")
    tokens = told.get("content") if isinstance(told, dict) else None
    if isinstance(tokens, list) and tokens and all(isinstance(one, dict) and "logprob" in one for one in tokens):
        return Finding(True, f"it told those of {len(tokens)} tokens")
    return Finding(False, "it took the question with a 200 and told none")


async def gives_choices(client: ModelClient) -> Finding:
    """Two completions of one request."""
    result = await _ask(client, _words("Say hello."), n=2)
    if isinstance(result, Failure):
        return _refusal(result)
    given = len(_choices(result))
    if given == 2:
        return Finding(True, "it gave the two completions asked for")
    return Finding(False, f"asked for two completions with a 200, it gave {given}")


async def makes_batches(client: ModelClient) -> Finding:
    """It lists its batches, be there none."""
    result = await client.get("/batches?limit=1")
    if isinstance(result, Failure):
        return Finding(False if result.status in _NO_SUCH_THING else None, result.detail)
    listed = _parsed(result.body)
    if isinstance(listed, dict) and isinstance(listed.get("data"), list):
        return Finding(True, "it lists its batches")
    return Finding(False, "asked for its batches with a 200, it gave no list of them")


PROBES: Mapping[Feature, Callable[[ModelClient], Awaitable[Finding]]] = {
    Feature.DATA_URI: reads_data_uris,
    Feature.IMAGE_URL: fetches_images,
    Feature.JSON_SCHEMA: answers_in_a_schema,
    Feature.LOGPROBS: tells_logprobs,
    Feature.CHOICES: gives_choices,
    Feature.BATCHES: makes_batches,
}


def _refusal(failure: Failure) -> Finding:
    """A request it calls wrong is a no; that it is busy or broken says nothing about the feature."""
    refused = failure.means in (Means.BAD_REQUEST, Means.TASK)
    return Finding(False if refused else None, failure.detail)


def _words(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _choices(reply: Reply) -> list[dict[str, Any]]:
    data = _parsed(reply.body)
    choices = data.get("choices") if isinstance(data, dict) else None
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _picture(colour: tuple[int, int, int]) -> str:
    file = io.BytesIO()
    Pillow.new("RGB", (_SIDE, _SIDE), colour).save(file, "PNG")
    return data_uri("image/png", file.getvalue())


def _failure(failure: Failure) -> tuple[bool, dict[str, object]]:
    return False, {
        "reason": failure.reason,
        "detail": failure.detail,
        "status": failure.status,
        "latency_ms": failure.latency_ms,
    }


def _reply(reply: Reply) -> tuple[bool, dict[str, object]]:
    """It works when a completion came; whether it is in our grammar is said beside that, since weak models slip."""
    reading = read_reply(reply.body)
    # The grammar alone: what a model says about grey squares is nobody's annotation.
    verdict = read_and_check((), _QUESTION, reading.text)
    report: dict[str, object] = {
        "status": reply.status,
        "latency_ms": reply.latency_ms,
        "input_tokens": reading.input_tokens,
        "output_tokens": reading.output_tokens,
        "text": reading.text[:2000],
        "in_grammar": not isinstance(verdict, Rejected),
        "detail": reading.detail or (verdict.detail if isinstance(verdict, Rejected) else "answered in the grammar"),
    }
    if reading.problem:
        report["reason"] = reading.problem
    return not reading.problem, report
