"""`manage.py export_version VERSION DIR`: write a frozen version as a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.datasets.exports import FORMATS, ExportFailed
from annotation_server.datasets.selectors import find_version
from annotation_server.datasets.services import create_export, export_version
from annotation_server.progress import Progress


class Command(BaseCommand):
    """Fetch the version, export, report."""

    help = "Export a frozen version into a new or empty directory."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("version", metavar="VERSION", help="its id, or PROJECT/NAME")
        parser.add_argument("directory", metavar="DIR", type=Path, help="a new or empty directory")
        parser.add_argument("--format", default="native", choices=FORMATS, help="how it is written")

    def handle(self, *args: Any, **options: Any) -> None:
        version = find_version(options["version"])
        if version is None:
            raise CommandError(
                f"there is no frozen version {options['version']!r}: give PROJECT/NAME, "
                "or at least eight characters of one id",
                returncode=2,
            )
        directory: Path = options["directory"].resolve()
        if len(str(directory)) > 500:
            raise CommandError("a path of at most 500 characters was expected", returncode=2)
        progress = Progress()
        export = create_export(version, person=None, directory=directory, form=options["format"])
        try:
            export_version(export, progress)
        except ExportFailed as error:
            progress.end()
            raise CommandError(str(error), returncode=1) from None
        progress.end()
        self.stdout.write(f"{version}: {version.summary['records']} records exported to {directory}")
