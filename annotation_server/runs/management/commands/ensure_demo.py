"""`manage.py ensure_demo`: the drawn demo project, ready to annotate, with its people; prints the sign-ins.

The launcher calls it once per home, and only where nobody else can reach the server: the passwords are well known.
It stands in runs/ because it also registers the local model, and nothing below runs/ knows endpoints.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from annotation_server.accounts.models import Person
from annotation_server.annotations.imports import import_batch
from annotation_server.progress import Progress
from annotation_server.projects.models import Membership, Project
from annotation_server.projects.services import create_project, set_member
from annotation_server.runs.models import Endpoint
from annotation_server.runs.services import create_endpoint
from annotation_server.samples.services import create_import
from fixtures.scenes import write_samples

SLUG = "demo"
PASSWORD = "demo"  # noqa: S105 - meant to be known: demo homes listen on the loopback address only
PEOPLE = {"manager": Membership.Role.MANAGER, "annotator": Membership.Role.ANNOTATOR}
CAVEAT = "Knows drawn scenes only."
GUIDELINES = (
    "These scenes are drawn by Winnow itself. The original shows a product on a plain ground; each candidate is meant "
    "to show the same product in a new scene. Judge one dimension at a time and leave the others aside.\n\n"
    "Compare with the original before you decide: some defects show only there."
)


class Command(BaseCommand):
    """Make what is missing, report."""

    help = "Make the demo project, its people and the local model's endpoint, where they are missing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--samples", type=int, default=24, help="how many scenes to draw (default: 24)")
        parser.add_argument("--size", type=int, default=512, help="their side in pixels (default: 512)")
        parser.add_argument("--seed", type=int, default=1, help="what they are drawn from (default: 1)")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEMO:
            raise CommandError("the demo's passwords are well known: set DEMO=True to make it here", returncode=2)
        project = _project_with_people()
        if settings.MODEL == "local" and not Endpoint.objects.filter(name="local").exists():
            create_endpoint(
                name="local",
                base_url=settings.LOCAL_MODEL_URL,
                model="local_screener",
                caveat=CAVEAT,
                image_side=options["size"],
            )
        if not project.samples.exists():
            _draw(project, samples=options["samples"], seed=options["seed"], size=options["size"])
        for name in PEOPLE:
            self.stdout.write(f"Sign in as {name} with the password {PASSWORD}")


@transaction.atomic
def _project_with_people() -> Project:
    people = {name: _person(name) for name in PEOPLE}
    project = Project.objects.filter(slug=SLUG).first()
    if project is None:
        # What is drawn alike is said alike: among these scenes a near-copy is no sign of a lazy model.
        fields = {"name": "Demo: drawn scenes", "guidelines": GUIDELINES, "near_copy": None}
        project = create_project(person=people["manager"], slug=SLUG, fields=fields)
    for name, role in PEOPLE.items():
        if not project.memberships.filter(person=people[name]).exists():
            set_member(person=people["manager"], project=project, member=people[name], role=role)
    return project


def _person(name: str) -> Person:
    return Person.objects.filter(username=name).first() or Person.objects.create_user(name, password=PASSWORD)


def _draw(project: Project, *, samples: int, seed: int, size: int) -> None:
    """Draw scenes and import them as a user would; done here and now, since no worker runs yet on a first start."""
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="winnow-demo-") as directory:
        for done in write_samples(Path(directory) / "scenes", samples, seed, size):
            progress(done, samples, "drawing scenes")
        batch = create_import(project, str(Path(directory) / "scenes" / "samples.jsonl"), "drawn scenes", None)
        import_batch(batch, progress)
    progress.end()
