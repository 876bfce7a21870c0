"""`manage.py freeze_version PROJECT NAME`: freeze what is resolved now, and print the version's id."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.datasets.services import FreezeRefused, create_version, freeze_version
from annotation_server.progress import Progress
from annotation_server.projects.models import Project


class Command(BaseCommand):
    """Fetch the project, freeze, report."""

    help = "Freeze a project's resolved tasks as a dataset version and print its id."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", metavar="PROJECT", help="the project's slug")
        parser.add_argument("name", metavar="NAME", help="a new name for the version")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"there is no project {options['project']!r}", returncode=2)
        progress = Progress()
        try:
            version = create_version(project, options["name"], person=None)
            version_id = freeze_version(version, progress)
        except FreezeRefused as error:
            progress.end()
            raise CommandError(str(error), returncode=1) from None
        progress.end()
        version.refresh_from_db()
        splits = ", ".join(f"{count} {split}" for split, count in version.splits.items())
        self.stderr.write(f"{version}: {version.summary['records']} records ({splits})")
        self.stdout.write(version_id)
