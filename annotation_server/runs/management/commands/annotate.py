"""`manage.py annotate PROJECT --approach … --endpoint …`: start a run of model annotation and follow it to its end."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.annotations.models import Approach
from annotation_server.jobs.models import Job, JobKind
from annotation_server.progress import Progress
from annotation_server.projects.models import Project
from annotation_server.runs import selectors, services
from annotation_server.runs.batch_selectors import batch_progress
from annotation_server.runs.following import report, usd, wait_until, worker_here
from annotation_server.runs.models import Endpoint, Run
from annotation_server.runs.selection import Wanted
from trainer.contract.dimensions import DIMENSIONS


class Command(BaseCommand):
    """Fetch project and endpoint, start the run, follow, report."""

    help = "Annotate a project's tasks with a model: reasoning and answer, or the reasoning for a person's answer."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to annotate, with which model, and how much of it."""
        parser.add_argument("project", metavar="PROJECT", help="the project's slug")
        parser.add_argument("--approach", required=True, choices=sorted(services.PROMPT_OF))
        parser.add_argument("--endpoint", required=True, metavar="NAME", help="as named by add_endpoint")
        parser.add_argument("--limit", type=int, metavar="N", help="at most so many tasks")
        parser.add_argument("--budget", metavar="USD", help="make no call that could take the run's cost above this")
        parser.add_argument("--budget-calls", type=int, metavar="N", help="make no more calls than this")
        parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="a reply is cut there")
        parser.add_argument("--temperature", type=float, default=0.0, metavar="T")
        parser.add_argument("--samples", type=int, default=1, metavar="K", help="automated: so many answers vote")
        parser.add_argument("--permute", action="store_true", help="every sample sees the candidates in another order")
        parser.add_argument("--logprobs", action="store_true", help="automated: confidence from log-probabilities")
        parser.add_argument("--json-answers", action="store_true", help="automated: ask for answers in a JSON schema")
        parser.add_argument("--batch", action="store_true", help="through the endpoint's Batch API, within 24 hours")
        parser.add_argument("--estimate", action="store_true", help="say what it would take, and start nothing")
        parser.add_argument("--dimension", action="append", default=[], choices=[d.value for d in DIMENSIONS])
        parser.add_argument(
            "--resolved-too", action="store_true", help="to compare approaches: also tasks that are done"
        )
        parser.add_argument("--here", action="store_true", help="start a worker for it, without a queue server")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 0 when every task was settled, 1 when the run stopped before, 2 for a mistake in the command."""
        wanted = self._wanted(options)
        if options["estimate"]:
            sizes = {name: options[name] for name in ("max_tokens", "samples", "permute")}
            self._say(selectors.estimate(wanted, **sizes, batched=options["batch"]))
            return
        try:
            run = services.start_run(
                wanted,
                budget_usd=usd("--budget", options["budget"]),
                budget_calls=options["budget_calls"],
                max_tokens=options["max_tokens"],
                temperature=options["temperature"],
                samples=options["samples"],
                permute=options["permute"],
                logprobs=options["logprobs"],
                json_answers=options["json_answers"],
                batched=options["batch"],
            )
        except services.RunRefused as error:
            raise CommandError(str(error)) from None
        self.stderr.write(f"run {run.pk}: {run.approach} by {run.endpoint}")
        try:
            with worker_here(options["here"]):
                self._follow(run)
        except KeyboardInterrupt:
            if options["here"]:
                services.pause(run, reason="interrupted at the keyboard")
                raise CommandError(f"run {run.pk} is paused") from None
            raise CommandError(f"run {run.pk} goes on in the workers: manage.py run pause {run.pk}") from None
        self._report(run)

    def _say(self, said: selectors.Estimate) -> None:
        self.stdout.write(
            f"{said.tasks} tasks, about {said.input_tokens} tokens in, "
            f"at most ${said.cost_usd:.4f} if nothing has to be asked again"
        )
        if said.resolve_calls:
            self.stdout.write(f"  of it re-solves: {said.resolve_calls} calls, ${said.resolve_cost_usd:.4f}")

    def _wanted(self, options: dict[str, Any]) -> Wanted:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"there is no project {options['project']!r}", returncode=2)
        endpoint = Endpoint.objects.filter(name=options["endpoint"]).first()
        if endpoint is None:
            known = ", ".join(Endpoint.objects.order_by("name").values_list("name", flat=True)) or "none yet"
            raise CommandError(f"there is no endpoint {options['endpoint']!r}; there are: {known}", returncode=2)
        for option, low in (("limit", 1), ("budget_calls", 1), ("max_tokens", 16), ("samples", 1), ("temperature", 0)):
            if options[option] is not None and options[option] < low:
                name = option.replace("_", "-")
                raise CommandError(f"--{name} is at least {low}, got {options[option]}", returncode=2)
        return Wanted(
            project=project,
            endpoint=endpoint,
            approach=Approach(options["approach"]),
            dimensions=options["dimension"],
            resolved_too=options["resolved_too"],
            limit=options["limit"],
        )

    def _follow(self, run: Run) -> None:
        show = Progress()

        def ended() -> bool:
            run.refresh_from_db()
            progress = selectors.run_progress(run)
            words = f"{progress.accepted} accepted, {progress.rejected} rejected, {progress.failed} failed"
            batches = batch_progress(run)
            left = f", {batches}" if batches and batches.out else f", {progress.left} left" if progress.left else ""
            show(progress.settled, progress.tasks, f"{words}, ${progress.cost_usd:.4f}{left}")
            return run.state not in Run.GOING

        def begun() -> bool:
            jobs = Job.objects.filter(kind=JobKind.PREPARE_RUN, object_id=run.pk)
            return jobs.filter(started_at__isnull=False).exists()

        wait_until(ended, begun, self.stderr.write)
        show.end()

    def _report(self, run: Run) -> None:
        report(run, self.stdout.write)
        if run.state != Run.State.DONE:
            raise CommandError(run.error or f"the run was {run.state}")
