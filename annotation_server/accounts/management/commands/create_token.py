"""`manage.py create_token USERNAME NAME`: an API token for a script; prints it, once."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import TokenNameTaken, create_token


class Command(BaseCommand):
    """Find the person, make the token, print it."""

    help = "Make an API token for somebody and print it: it is kept nowhere and cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username", metavar="USERNAME")
        parser.add_argument("name", metavar="NAME", help="what the token is for")

    def handle(self, *args: Any, **options: Any) -> None:
        person = Person.objects.filter(username=options["username"]).first()
        if person is None:
            raise CommandError(f"there is no person {options['username']!r}: make one with create_person", returncode=1)
        try:
            _, secret = create_token(person=person, name=options["name"])
        except TokenNameTaken as taken:
            raise CommandError(str(taken), returncode=1) from None
        self.stdout.write(secret)
