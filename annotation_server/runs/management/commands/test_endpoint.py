"""`manage.py test_endpoint NAME`: have a worker call an endpoint and say what came back, and what it can do."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.runs.following import wait_until, worker_here
from annotation_server.runs.models import Endpoint, EndpointTest
from annotation_server.runs.services import start_endpoint_test


class Command(BaseCommand):
    """Fetch the endpoint, start its test, wait, report."""

    help = "Call an endpoint, from where the workers run, and say what it answered and which features it has."

    def add_arguments(self, parser: CommandParser) -> None:
        """Which endpoint."""
        parser.add_argument("name", metavar="NAME", help="as named by add_endpoint")
        parser.add_argument("--here", action="store_true", help="start a worker for it, without a queue server")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 1, with the reason in one line, when the endpoint cannot be used."""
        endpoint = Endpoint.objects.filter(name=options["name"]).first()
        if endpoint is None:
            raise CommandError(f"there is no endpoint {options['name']!r}", returncode=2)
        test = start_endpoint_test(endpoint)
        with worker_here(options["here"]):
            self._follow(test)
        if not test.ok:
            raise CommandError(str(test.report.get("detail", "the endpoint cannot be used")))
        report = test.report
        self.stdout.write(
            f"{endpoint} works: {report['latency_ms']} ms, {report['input_tokens']} + {report['output_tokens']} tokens"
        )
        self.stdout.write(f"  {report['detail']}")
        self.stdout.write(
            f"  the test took {test.calls} calls, {test.input_tokens} + {test.output_tokens} tokens, "
            f"${test.cost_usd:.6f}"
        )
        for name, probe in report.get("features", {}).items():
            works = {True: "yes", False: "no", None: "?"}[probe["works"]]
            self.stdout.write(f"  {name}: {works} ({probe['detail']})")

    def _follow(self, test: EndpointTest) -> None:
        def ended() -> bool:
            test.refresh_from_db()
            return test.ok is not None

        def begun() -> bool:
            job = latest_job(JobKind.TEST_ENDPOINT, test.pk)
            return job is not None and job.started_at is not None

        wait_until(ended, begun, self.stderr.write)
