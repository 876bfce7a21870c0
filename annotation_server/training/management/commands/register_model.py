"""`manage.py register_model NAME RUN_DIR --base-url URL`: let a trained model annotate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.training.services import ModelRefused, register_model


class Command(BaseCommand):
    """Read the run directory, register, report."""

    help = "Register a trained model and the endpoint that serves it, as one more annotator."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="a new name for the model, its endpoint and its annotator")
        parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the trainer's run directory")
        parser.add_argument("--base-url", required=True, help="where it is served, up to and including /v1")
        parser.add_argument("--model", help="its name there (default: NAME)")
        parser.add_argument("--caveat", default="", help="shown wherever its answers are")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"]
        try:
            version = register_model(
                name,
                options["run_dir"].resolve(),
                base_url=options["base_url"],
                model=options["model"] or name,
                caveat=options["caveat"],
            )
        except ModelRefused as error:
            raise CommandError(str(error), returncode=1) from None
        source = version.dataset_version or "a version that was not frozen here"
        evaluated = "evaluated" if version.evaluation else "not evaluated"
        self.stdout.write(f"{name}: {version.method} on {source}, {evaluated}; annotates through endpoint {name}")
