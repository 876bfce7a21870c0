"""The connection test of an endpoint: the prompt of the contract with tiny drawn pictures, sent once.

Not here: runs (annotate.py).
"""

from __future__ import annotations

import asyncio
import io
import uuid

from PIL import Image as Pillow

from annotation_server.runs import services as runs_services
from annotation_server.runs.models import Endpoint, EndpointTest
from annotation_workers import automated
from annotation_workers.model_client import EndpointUnusable, Failure, ModelClient, Reply, read_reply
from annotation_workers.pictures import as_data_uri
from annotation_workers.verdicts import Question, Rejected, read_and_check
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.prompts import openai_messages

_QUESTION = Question(dimension=Dimension.PHYSICAL_SHADOW, polarity=Polarity.ACCEPTABLE, candidates=4)
_SIDE = 64
_MAX_TOKENS = 256


def call_once(test: EndpointTest) -> None:
    """Ask, and write down in the test's row what came back. A test that was answered is not repeated."""
    if test.ok is not None:
        return
    try:
        result = asyncio.run(_ask(test.endpoint))
    except EndpointUnusable as error:
        runs_services.record_endpoint_test(test.pk, ok=False, report={"reason": "unusable", "detail": str(error)})
        return
    ok, report = _failure(result) if isinstance(result, Failure) else _reply(result)
    runs_services.record_endpoint_test(test.pk, ok=ok, report=report)


async def _ask(endpoint: Endpoint) -> Reply | Failure:
    prompt = automated.build_prompt(_QUESTION)
    pictures = [_picture(shade) for shade in (230, 200, 170, 140, 110)]
    async with ModelClient(endpoint) as client:
        return await client.complete(
            openai_messages(prompt, pictures), request_id=uuid.uuid4(), temperature=0.0, max_tokens=_MAX_TOKENS
        )


def _picture(shade: int) -> str:
    file = io.BytesIO()
    Pillow.new("RGB", (_SIDE, _SIDE), (shade, shade, shade)).save(file, "PNG")
    return as_data_uri(file.getvalue(), _SIDE)


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
