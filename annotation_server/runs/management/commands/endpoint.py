"""`manage.py endpoint list|show|change [NAME]`: look at endpoints, or change one's prices, limits and features.

Making one is add_endpoint, calling it test_endpoint.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.accounts.services import audit
from annotation_server.runs.endpoint_options import add_settings, given_settings
from annotation_server.runs.models import Endpoint, Feature
from annotation_server.runs.selectors import spent_on_tests
from annotation_server.runs.services import EndpointRefused, change_endpoint

_SAID: dict[str, bool | None] = {"yes": True, "no": False, "found": None}


class Command(BaseCommand):
    """Fetch the endpoint, change it, report."""

    help = "List endpoints, show one, or change its prices, limits and features. Its address, model and key stay."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to do with which endpoint."""
        parser.add_argument("verb", choices=["list", "show", "change"])
        parser.add_argument("name", nargs="?", metavar="NAME", help="as named by add_endpoint")
        add_settings(parser)
        parser.add_argument(
            "--feature",
            action="append",
            metavar="FEATURE=yes|no|found",
            help=f"say whether it has one of {', '.join(Feature.values)}; found: as the last test found it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 2, with one line, for a mistake in the command."""
        verb, name = options["verb"], options["name"]
        fields = given_settings(options)
        if verb != "change" and (fields or options["feature"]):
            raise CommandError("settings go with change", returncode=2)
        if verb == "list":
            if name is not None:
                raise CommandError("list takes no name: `endpoint show NAME` shows one", returncode=2)
            for endpoint in Endpoint.objects.order_by("name"):
                self.stdout.write(_line(endpoint))
            return
        endpoint = _named(name)
        if verb == "change":
            if options["feature"]:
                fields["overrides"] = _overrides(endpoint, options["feature"])
            if not fields:
                raise CommandError("nothing to change: give a setting, such as --concurrency 16", returncode=2)
            try:
                change_endpoint(endpoint, fields)
            except EndpointRefused as error:
                raise CommandError(str(error), returncode=2) from None
            audit(person=None, verb="endpoint.change", subject=endpoint, fields=sorted(fields))
        self._show(endpoint)

    def _show(self, endpoint: Endpoint) -> None:
        self.stdout.write(_line(endpoint))
        cached = "as other input" if endpoint.cached_input_price is None else f"${_price(endpoint.cached_input_price)}"
        self.stdout.write(f"  cached input: {cached}")
        self.stdout.write(
            f"  {endpoint.concurrency} calls at once, {_limit(endpoint.requests_per_minute, 'calls')}, "
            f"{_limit(endpoint.tokens_per_minute, 'tokens')}, {endpoint.timeout_seconds} s for an answer, "
            f"images up to {endpoint.image_side} px as {endpoint.images_as}"
        )
        for feature in Feature:
            said = " (said by somebody)" if feature in endpoint.overrides else ""
            self.stdout.write(f"  {feature.value}: {'yes' if endpoint.can(feature) else 'no'}{said}")
        test = endpoint.tests.order_by("-pk").first()
        if test is not None:
            works = {True: "it works", False: "it does not work", None: "under way"}[test.ok]
            self.stdout.write(f"  last test: {works}; all tests took ${spent_on_tests(endpoint).cost_usd:.6f}")
        if endpoint.caveat:
            self.stdout.write(f"  {endpoint.caveat}")


def _named(name: str | None) -> Endpoint:
    endpoint = Endpoint.objects.filter(name=name).first()
    if endpoint is None:
        known = ", ".join(Endpoint.objects.order_by("name").values_list("name", flat=True)) or "none yet"
        asked = "which endpoint?" if name is None else f"there is no endpoint {name!r};"
        raise CommandError(f"{asked} there are: {known}", returncode=2)
    return endpoint


def _line(endpoint: Endpoint) -> str:
    key = f"key from {endpoint.api_key_env}" if endpoint.api_key_env else "no key"
    prices = f"${_price(endpoint.input_price)} / ${_price(endpoint.output_price)} per million tokens in / out"
    return f"{endpoint}: {endpoint.model} at {endpoint.base_url}, {key}, {prices}"


def _price(usd: Decimal) -> str:
    return f"{usd.normalize():f}"


def _limit(number: int, of: str) -> str:
    return f"{number} {of} a minute" if number else f"any number of {of} a minute"


def _overrides(endpoint: Endpoint, said: list[str]) -> dict[str, bool]:
    """What somebody says of features, beside what was said of others before."""
    overrides: dict[str, bool] = dict(endpoint.overrides)
    for one in said:
        feature, _equals, answer = one.partition("=")
        if feature not in Feature.values or answer not in _SAID:
            raise CommandError(
                f"--feature is one of {', '.join(Feature.values)} with =yes, =no or =found, got {one!r}", returncode=2
            )
        overrides.pop(feature, None)
        if (works := _SAID[answer]) is not None:
            overrides[feature] = works
    return overrides
