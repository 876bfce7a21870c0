"""`manage.py verify_version PATH_OR_ID`: prove an export directory, or a frozen version from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.datasets.selectors import find_version
from annotation_server.datasets.verify import NotVerified, verify_directory, verify_version
from annotation_server.progress import Progress


class Command(BaseCommand):
    """Find what is meant, verify, report."""

    help = "Prove that an export or a frozen version is unchanged; name the file where it is not."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("what", metavar="PATH_OR_ID", help="an export's directory, a version's id, or PROJECT/NAME")

    def handle(self, *args: Any, **options: Any) -> None:
        what: str = options["what"]
        progress = Progress()
        try:
            if Path(what).exists():
                version_id, records, files = verify_directory(Path(what), progress)
            elif (version := find_version(what)) is not None:
                version_id, records, files = verify_version(version, progress)
            else:
                raise CommandError(
                    f"{what!r} is neither a directory nor a frozen version: give a path, PROJECT/NAME, "
                    "or at least eight characters of one id",
                    returncode=2,
                )
        except NotVerified as error:
            progress.end()
            raise CommandError(str(error), returncode=1) from None
        progress.end()
        self.stdout.write(f"ok {version_id} {records} records {files} files")
