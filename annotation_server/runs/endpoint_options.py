"""The options of commands that make an endpoint or change one: prices, limits, what to mind.

Not here: its name, address, model and key, which stay as they were made; whether a value can be (services.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import CommandError, CommandParser

from annotation_server.runs.models import Endpoint
from annotation_server.runs.services import CHANGEABLE

_PRICES = ("input_price", "output_price", "cached_input_price", "batch_price")
AS_OTHER_INPUT = "input"


def add_settings(parser: CommandParser) -> None:
    """What is left out of a command is None: the default of a new endpoint, or unchanged."""
    parser.add_argument("--input-price", metavar="USD", help="per million tokens; a new one: 0")
    parser.add_argument("--output-price", metavar="USD", help="per million tokens; a new one: 0")
    parser.add_argument(
        "--cached-input-price", metavar="USD", help=f"per million; {AS_OTHER_INPUT}: as other input, and so a new one"
    )
    parser.add_argument("--batch-price", metavar="SHARE", help="of these prices, in a batch; a new one: 0.5")
    parser.add_argument("--concurrency", type=int, metavar="N", help="requests at once; a new one: 8")
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="0: no limit, and so a new one")
    parser.add_argument("--tokens-per-minute", type=int, metavar="N", help="in and out; 0: no limit, and so a new one")
    parser.add_argument(
        "--timeout", dest="timeout_seconds", type=int, metavar="SECONDS", help="for one answer; a new one: 120"
    )
    parser.add_argument("--image-side", type=int, metavar="PIXELS", help="longest side sent; a new one: 1024")
    parser.add_argument(
        "--images-as", choices=Endpoint.ImagesAs.values, help="a new one: data_uri; url: fetched from PUBLIC_URL"
    )
    parser.add_argument("--caveat", help="shown wherever its answers are")


def given_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as the services take it."""
    given = {name: options[name] for name in CHANGEABLE if options.get(name) is not None}
    return given | {name: _price(name, given[name]) for name in _PRICES if name in given}


def _price(name: str, text: str) -> Decimal | None:
    if name == "cached_input_price" and text == AS_OTHER_INPUT:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        option = "--" + name.replace("_", "-")
        wanted = "a share of the prices such as 0.5" if name == "batch_price" else "USD per million tokens such as 0.15"
        raise CommandError(f"{option} is {wanted}, got {text!r}", returncode=2) from None
