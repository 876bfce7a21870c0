"""`manage.py import_samples PROJECT SOURCE`: import a samples.jsonl, or a directory with a folder per sample, now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.annotations.imports import import_batch
from annotation_server.progress import Progress
from annotation_server.projects.models import Project
from annotation_server.samples.importers import ImportRefused
from annotation_server.samples.services import create_import


class Command(BaseCommand):
    """Fetch the project, import, report."""

    help = "Import samples into a project from a JSON-lines file or a directory with a folder per sample."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", metavar="PROJECT", help="the project's slug")
        parser.add_argument("source", metavar="SOURCE", type=Path, help="samples.jsonl, or a directory")
        parser.add_argument("--name", help="who the answers in it are attributed to (default: the source's own name)")
        parser.add_argument("--create-project", action="store_true", help="make the project if there is none")

    def handle(self, *args: Any, **options: Any) -> None:
        source: Path = options["source"].resolve()
        project = _project(options["project"], create=options["create_project"])
        name = options["name"] or "/".join(source.parts[-2:])
        if len(name) > 200 or len(str(source)) > 500:
            raise CommandError("a name of at most 200 characters and a path of at most 500 were expected", returncode=2)
        batch = create_import(project, str(source), name, person=None)
        progress = Progress()
        try:
            import_batch(batch, progress)
        except ImportRefused as error:
            progress.end()
            raise CommandError(f"nothing was imported\n{error}", returncode=1) from None
        progress.end()
        batch.refresh_from_db()
        for note in batch.notes.splitlines():
            self.stdout.write(note)
        self.stdout.write(
            f"{project.slug}: {batch.created_samples} samples imported ({batch.created_images} new images), "
            f"{batch.unchanged_samples} were there unchanged; "
            f"{batch.imported_annotations} answers and {batch.gold_answers} gold answers added"
        )


def _project(slug: str, *, create: bool) -> Project:
    project = Project.objects.filter(slug=slug).first()
    if project is not None:
        return project
    if not create:
        raise CommandError(f"there is no project {slug!r}: name one, or add --create-project", returncode=2)
    project = Project(slug=slug, name=slug)
    try:
        project.full_clean()
    except ValidationError as error:
        raise CommandError(f"{slug!r} cannot be a project: {' '.join(error.messages)}", returncode=2) from None
    project.save()
    return project
