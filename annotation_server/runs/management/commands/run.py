"""`manage.py run status|pause|resume|cancel ID`: look at a run of model annotation, or change whether it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.accounts.services import audit
from annotation_server.runs import services
from annotation_server.runs.following import report, usd
from annotation_server.runs.models import Run

CHANGES: dict[str, Callable[[Run], bool]] = {"pause": services.pause, "cancel": services.cancel}


class Command(BaseCommand):
    """Fetch the run, change it, report."""

    help = "Say where a run stands, pause it (no call begins any more), resume it, or cancel it for good."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to do with which run."""
        parser.add_argument("verb", choices=["status", "pause", "resume", "cancel"])
        parser.add_argument("run", type=int, metavar="ID", help="as printed by annotate, or on the project's page")
        parser.add_argument("--budget", metavar="USD", help="resume: with another budget")
        parser.add_argument("--budget-calls", type=int, metavar="N", help="resume: with another budget")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 1 when the run has moved on, so that nothing was changed; 2 for a mistake in the command."""
        run = Run.objects.select_related("endpoint").filter(pk=options["run"]).first()
        if run is None:
            raise CommandError(f"there is no run {options['run']}", returncode=2)
        verb = options["verb"]
        budgets = {
            "budget_usd": _positive("--budget", usd("--budget", options["budget"])),
            "budget_calls": _positive("--budget-calls", options["budget_calls"]),
        }
        if verb != "resume" and any(budgets.values()):
            raise CommandError("--budget and --budget-calls go with resume", returncode=2)
        if verb != "status":
            won = services.resume(run, **budgets) if verb == "resume" else CHANGES[verb](run)
            run.refresh_from_db()
            if not won:
                raise CommandError(f"run {run.pk} is {run.state}: it cannot {verb} now")
            audit(person=None, verb=f"run.{verb}", subject=run)
        report(run, self.stdout.write)


def _positive(option: str, amount: Any) -> Any:
    if amount is not None and amount <= 0:
        raise CommandError(f"{option} is more than 0, got {amount}", returncode=2)
    return amount
