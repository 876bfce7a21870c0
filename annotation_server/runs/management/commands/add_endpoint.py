"""`manage.py add_endpoint NAME --base-url URL --model M`: make a model known that speaks the OpenAI protocol."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.runs.endpoint_options import add_settings, given_settings
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
        add_settings(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """A field that is wrong is one line, with the field's name."""
        try:
            endpoint = create_endpoint(
                name=options["name"],
                base_url=options["base_url"],
                model=options["model"],
                api_key_env=options["api_key_env"],
                **given_settings(options),
            )
        except EndpointRefused as error:
            raise CommandError(str(error), returncode=2) from None
        self.stdout.write(f"{endpoint}: {endpoint.model} at {endpoint.base_url}")
