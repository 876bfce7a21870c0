"""`manage.py create_person USERNAME [--project SLUG --role ROLE] [--administrator] [--password-stdin]`.

Without a password the person works through the API alone (create_token), until an administrator sets one.
"""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import audit
from annotation_server.projects.models import Membership, Project


class Command(BaseCommand):
    """Make the person, give the role, report."""

    help = "Make a person who may sign in, and give them a role in a project."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username", metavar="USERNAME")
        parser.add_argument("--project", metavar="SLUG")
        parser.add_argument("--role", choices=Membership.Role.values)
        parser.add_argument("--administrator", action="store_true", help="may do everything, everywhere")
        parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")

    def handle(self, *args: Any, **options: Any) -> None:
        username, slug = options["username"], options["project"]
        if bool(slug) != bool(options["role"]):
            raise CommandError("--project and --role go together", returncode=2)
        project = Project.objects.filter(slug=slug).first() if slug else None
        if slug and project is None:
            raise CommandError(f"there is no project {slug!r}", returncode=1)
        if Person.objects.filter(username=username).exists():
            raise CommandError(f"there is a person {username!r} already", returncode=1)
        password = sys.stdin.readline().rstrip("\n") if options["password_stdin"] else None
        with transaction.atomic():
            make = Person.objects.create_superuser if options["administrator"] else Person.objects.create_user
            person = make(username, password=password)
            if project:
                Membership.objects.create(project=project, person=person, role=options["role"])
            audit(person=None, verb="person.create", subject=person, project=slug, role=options["role"])
        role = f"{options['role']} of {slug}" if slug else "no role in a project"
        self.stdout.write(f"{username}: {'administrator' if options['administrator'] else role}")
