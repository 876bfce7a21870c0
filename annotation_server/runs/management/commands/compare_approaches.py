"""`manage.py compare_approaches PROJECT`: what manual, automated and answer-driven annotation cost and achieve."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.annotations.csv_files import safe_cell
from annotation_server.projects.models import Project
from annotation_server.runs.comparison import Choice, Comparison, Line, Measure, Reference, choose, compare
from annotation_server.runs.comparison_forms import WANTED
from annotation_server.runs.comparison_scope import MOST_TASKS
from annotation_server.runs.comparison_table import COLUMNS, choice_figures, figures, row
from annotation_server.runs.correctness import Share
from annotation_server.runs.mix import Option
from annotation_server.runs.models import Endpoint

_HEADER = (
    "dimension", "approach", "accepted", "of", "USD", "people", "tokens", "gold exact", "others exact", "words",
    "seconds",
)  # fmt: skip


class Command(BaseCommand):
    """Fetch the project, compare, print."""

    help = "Compare a project's approaches per dimension: cost per accepted record, quality, texts, time; cheapest mix."

    def add_arguments(self, parser: CommandParser) -> None:
        """Which project, over which tasks, and how to print it."""
        parser.add_argument("project", metavar="PROJECT", help="the project's slug")
        parser.add_argument("--all-tasks", action="store_true", help="not only those that all approaches worked on")
        parser.add_argument("--every-task", action="store_true", help=f"also of more than {MOST_TASKS}; takes longer")
        parser.add_argument("--endpoint", metavar="NAME", help="of the model approaches only what this one did")
        parser.add_argument("--quality", type=float, default=WANTED, metavar="SHARE", help="to reach, from 0 to 1")
        parser.add_argument("--reference", choices=list(Reference), help="default: gold where there is any")
        parser.add_argument("--measure", choices=list(Measure), default=Measure.EXACT)
        output = parser.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="every figure, for programs")
        output.add_argument("--csv", type=Path, metavar="FILE", help="every figure as a table")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 2 for a mistake in the command."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"there is no project {options['project']!r}", returncode=2)
        if not 0 <= options["quality"] <= 1:
            raise CommandError(f"--quality is from 0 to 1, got {options['quality']:g}", returncode=2)
        found = compare(
            project,
            shared=not options["all_tasks"],
            endpoint=_endpoint(project, options["endpoint"]),
            most=None if options["every_task"] else MOST_TASKS,
        )
        reference = Reference(options["reference"]) if options["reference"] else found.best_reference
        choice = choose(found, options["quality"], reference, Measure(options["measure"]))
        if options["json"]:
            self.stdout.write(json.dumps(_as_json(found, choice), indent=2))
        elif options["csv"]:
            self._write_csv(options["csv"], found)
        else:
            self._print(found, choice)

    def _write_csv(self, file: Path, found: Comparison) -> None:
        try:
            with file.open("w", newline="", encoding="utf-8") as out:
                writer = csv.writer(out)
                writer.writerow(COLUMNS)
                writer.writerows([safe_cell(value) for value in row(line)] for line in found.lines)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}") from None
        self.stdout.write(f"{file}: {len(found.lines)} rows")

    def _print(self, found: Comparison, choice: Choice) -> None:
        if not found.tried:
            self.stdout.write("nothing to compare yet: nobody has answered, and no run has settled a task")
            return
        over = "that all of them worked on" if found.shared else "in all"
        self.stdout.write(f"{sum(found.tasks.values())} tasks {over}; tried: {', '.join(found.tried)}")
        if found.looked_at < sum(found.tasks.values()):
            self.stdout.write(f"{found.looked_at} of them were drawn (--every-task counts all)")
        if found.hourly_wage is None:
            self.stdout.write("no wage is set: what people's work costs is unknown")
        for endpoint in found.endpoints:
            if endpoint.caveat:
                self.stdout.write(f"{endpoint}: {endpoint.caveat}")
        cells = [_HEADER, *(_cells(line) for line in found.lines)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(_HEADER))]
        for line in cells:
            padded = (
                text.ljust(width) if place < 2 else text.rjust(width)
                for place, (text, width) in enumerate(zip(line, widths, strict=True))
            )  # fmt: skip
            self.stdout.write("  ".join(padded).rstrip())
        self._print_mix(choice)

    def _print_mix(self, choice: Choice) -> None:
        wanted = f"{choice.wanted:.1%} right ({choice.reference}, {choice.measure})"
        if choice.chosen is None:
            best = f"; the best is {choice.best.quality:.1%} at {choice.best.cost:.4f} USD" if choice.best else ""
            self.stdout.write(f"no mix is known to reach {wanted}{best}")
            return
        self.stdout.write(
            f"cheapest mix for {wanted}: {choice.chosen.cost:.4f} USD per record, {choice.chosen.quality:.1%} expected"
        )
        for dimension, option in choice.chosen.choices.items():
            self.stdout.write(f"  {dimension}: {_in_words(option)}, {option.cost:.4f} USD, {option.quality:.1%}")


def _endpoint(project: Project, name: str | None) -> Endpoint | None:
    if not name:
        return None
    used = Endpoint.objects.filter(runs__project=project).distinct().order_by("name")
    endpoint = used.filter(name=name).first()
    if endpoint is None:
        known = ", ".join(used.values_list("name", flat=True)) or "none yet"
        raise CommandError(f"no endpoint {name!r} has a run in {project.slug}; there are: {known}", returncode=2)
    return endpoint


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.dimension or "all",
        line.approach,
        str(line.accepted),
        str(line.asked),
        _number(line.cost_usd, 4),
        _number(line.people_usd, 4),
        _number(line.token_usd, 4),
        _share(line.gold.exact),
        _share(line.others.exact),
        _number(line.words.middle if line.words else None, 0),
        _number(line.median_person_seconds if line.model_seconds is None else line.median_model_seconds, 1),
    )


def _number(number: float | None, places: int) -> str:
    return "n/a" if number is None else f"{number:.{places}f}"


def _share(share: Share) -> str:
    if share.value is None:
        return "n/a"
    return f"{share.value:.3f} ({share.low:.3f}-{share.high:.3f})"


def _in_words(option: Option) -> str:
    if not option.then:
        return option.approach
    left = f"{option.left:.0%} go on to {option.then}"
    if option.confidence is None:
        return f"{option.approach}, refused tasks: {left}"
    return f"{option.approach} at a confidence of {option.confidence:.2f} or more, {left}"


def _as_json(found: Comparison, choice: Choice) -> dict[str, Any]:
    """As the API says it."""
    return {
        "shared": found.shared,
        "tasks": dict(found.tasks),
        "looked_at": found.looked_at,
        "hourly_wage": None if found.hourly_wage is None else str(found.hourly_wage),
        "tried": list(found.tried),
        "lines": [figures(line) for line in found.lines],
        "mix": choice_figures(choice),
    }
