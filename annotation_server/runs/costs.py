"""What calls cost: from the tokens an endpoint reported, and as an estimate before anything was sent.

Not here: budgets and sums (ledger.py), how fast calls may follow one another (pacing.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from annotation_server.runs.models import Endpoint
from annotation_server.samples.models import Image

_MILLION = Decimal(1_000_000)
_PLACES = Decimal("0.00000001")
_PIXELS_PER_TOKEN = 28 * 28
"""As Qwen's models count; other vision models stay in this order."""
_QUESTION_TOKENS = 250


@dataclass(slots=True)
class Spent:
    """What some calls took, added up."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)


def cost_of(
    endpoint: Endpoint, input_tokens: int, output_tokens: int, cached_tokens: int = 0, *, batched: bool = False
) -> Decimal:
    """What a call cost at the endpoint's prices, in USD, to the last place that a row keeps: sums then stay exact."""
    cached = min(cached_tokens, input_tokens)
    cached_price = endpoint.input_price if endpoint.cached_input_price is None else endpoint.cached_input_price
    fresh = (input_tokens - cached) * endpoint.input_price
    cost = (fresh + cached * cached_price + output_tokens * endpoint.output_price) / _MILLION
    return (cost * endpoint.batch_price if batched else cost).quantize(_PLACES)


def input_tokens_of(endpoint: Endpoint, images: Iterable[Image]) -> int:
    """An upper estimate of what a task's images and question take, at the size in which the images are sent."""
    return _QUESTION_TOKENS + sum(image_tokens(endpoint, image.width, image.height) for image in images)


def image_tokens(endpoint: Endpoint, width: int, height: int) -> int:
    """An image's share of it."""
    longest = max(width, height, 1)
    shrunk = min(1.0, endpoint.image_side / longest)
    return max(1, int(width * shrunk * height * shrunk) // _PIXELS_PER_TOKEN)
