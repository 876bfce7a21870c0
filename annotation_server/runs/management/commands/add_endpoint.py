"""`manage.py add_endpoint NAME --base-url URL --model M`: make a model known that speaks the OpenAI protocol."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.runs.models import Endpoint
from annotation_server.runs.services import EndpointRefused, create_endpoint


class Command(BaseCommand):
    """Make the endpoint, report."""

    help = "Make an OpenAI-compatible endpoint known. Nothing is called; test_endpoint does that."

    def add_arguments(self, parser: CommandParser) -> None:
        """Where the model is, what it costs, how much it takes at once."""
        parser.add_argument("name", metavar="NAME", help="how Winnow calls it: letters, digits, - and _")
        parser.add_argument("--base-url", required=True, metavar="URL", help="up to and including /v1")
        parser.add_argument("--model", required=True, metavar="M", help="the model's name at the endpoint")
        parser.add_argument(
            "--api-key-env", default="", metavar="VAR", help="the environment variable that holds the key"
        )
        parser.add_argument("--input-price", default="0", metavar="USD", help="per million tokens")
        parser.add_argument("--output-price", default="0", metavar="USD", help="per million tokens")
        parser.add_argument("--cached-input-price", metavar="USD", help="per million; default: as other input")
        parser.add_argument("--batch-price", default="0.5", metavar="SHARE", help="of these prices, in a batch")
        parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at once")
        parser.add_argument("--requests-per-minute", type=int, default=0, metavar="N", help="0: no limit")
        parser.add_argument("--tokens-per-minute", type=int, default=0, metavar="N", help="in and out; 0: no limit")
        parser.add_argument("--timeout", type=int, default=120, metavar="SECONDS", help="for one answer")
        parser.add_argument("--image-side", type=int, default=1024, metavar="PIXELS", help="longest side sent")
        parser.add_argument(
            "--images-as", choices=Endpoint.ImagesAs.values, default="data_uri", help="url: fetched from PUBLIC_URL"
        )
        parser.add_argument("--caveat", default="", help="shown wherever its answers are")

    def handle(self, *args: Any, **options: Any) -> None:
        """A field that is wrong is one line, with the field's name."""
        try:
            endpoint = create_endpoint(
                name=options["name"],
                base_url=options["base_url"],
                model=options["model"],
                api_key_env=options["api_key_env"],
                input_price=_price("--input-price", options["input_price"]),
                output_price=_price("--output-price", options["output_price"]),
                cached_input_price=_price_or_none("--cached-input-price", options["cached_input_price"]),
                batch_price=_share("--batch-price", options["batch_price"]),
                concurrency=options["concurrency"],
                requests_per_minute=options["requests_per_minute"],
                tokens_per_minute=options["tokens_per_minute"],
                timeout_seconds=options["timeout"],
                image_side=options["image_side"],
                images_as=options["images_as"],
                caveat=options["caveat"],
            )
        except EndpointRefused as error:
            raise CommandError(str(error), returncode=2) from None
        self.stdout.write(f"{endpoint}: {endpoint.model} at {endpoint.base_url}")


def _price_or_none(option: str, text: str | None) -> Decimal | None:
    return None if text is None else _price(option, text)


def _price(option: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise CommandError(f"{option} is USD per million tokens such as 0.15, got {text!r}", returncode=2) from None


def _share(option: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise CommandError(f"{option} is a share of the prices such as 0.5, got {text!r}", returncode=2) from None
