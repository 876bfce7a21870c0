"""What calls cost: from the tokens an endpoint reported, and as an estimate before anything was sent.

Not here: budgets and sums (ledger.py).
"""

from __future__ import annotations

from decimal import Decimal

from annotation_server.runs.models import Endpoint

_MILLION = Decimal(1_000_000)
_PLACES = Decimal("0.00000001")
_PIXELS_PER_TOKEN = 28 * 28
"""As Qwen's models count; other vision models stay in this order."""
_QUESTION_TOKENS = 250


def cost_of(endpoint: Endpoint, input_tokens: int, output_tokens: int) -> Decimal:
    """What a call cost at the endpoint's prices, in USD, to the last place that a row keeps: sums then stay exact."""
    return ((input_tokens * endpoint.input_price + output_tokens * endpoint.output_price) / _MILLION).quantize(_PLACES)


def most_a_call_costs(endpoint: Endpoint, candidates: int, max_tokens: int) -> Decimal:
    """An upper estimate of one call about a task, in USD: square images at full size, a reply of full length."""
    per_image = max(1, endpoint.image_side**2 // _PIXELS_PER_TOKEN)
    return cost_of(endpoint, _QUESTION_TOKENS + (candidates + 1) * per_image, max_tokens)
