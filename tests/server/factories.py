"""Rows for tests, as plain functions with defaults. Not here: files and pictures (tests make those they need)."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Collection
from typing import Any

from annotation_server.accounts.models import Person
from annotation_server.annotations import services as annotations_services
from annotation_server.annotations.models import Annotation, Annotator, Approach
from annotation_server.jobs.models import Job, JobKind
from annotation_server.jobs.working import working
from annotation_server.projects.models import Membership, Project
from annotation_server.runs.models import Run
from annotation_server.runs.preparation import prepare_run
from annotation_server.samples.models import Candidate, Image, Sample
from annotation_server.tasks import services as tasks_services
from annotation_server.tasks.models import Task

_numbers = itertools.count(1)


def make_person(username: str = "", **fields: Any) -> Person:
    """Somebody who can sign in with the password "secret"."""
    return Person.objects.create_user(username or f"person{next(_numbers)}", password="secret", **fields)


def make_project(**fields: Any) -> Project:
    """A project of all four dimensions with one vote per task."""
    number = next(_numbers)
    return Project.objects.create(**{"slug": f"project-{number}", "name": f"Project {number}"} | fields)


def make_member(project: Project, role: str = Membership.Role.ANNOTATOR, username: str = "") -> Person:
    """A person with a role in the project."""
    person = make_person(username)
    Membership.objects.create(project=project, person=person, role=role)
    return person


def make_image(**fields: Any) -> Image:
    """A row for an image whose bytes no test looks at."""
    sha256 = uuid.uuid4().hex * 2
    defaults = {"sha256": sha256, "source_sha256": sha256, "extension": "png", "width": 64, "height": 64, "size": 1}
    return Image.objects.create(**defaults | fields)


def make_sample(
    project: Project, *, candidates: int = 4, dimensions: Collection[str] = (), **fields: Any
) -> tuple[Sample, list[Task]]:
    """A sample with rows for its images, queued in the project's dimensions or those given."""
    defaults = {"external_id": f"sample-{next(_numbers)}", "original": None, "content_sha256": uuid.uuid4().hex * 2}
    merged = defaults | fields
    merged["original"] = merged["original"] or make_image()
    sample = Sample.objects.create(project=project, **merged)
    for letter in "ABCDEFGH"[:candidates]:
        Candidate.objects.create(sample=sample, letter=letter, image=make_image())
    tasks = tasks_services.create_tasks(
        [sample],
        project=project,
        candidate_counts={sample.pk: candidates},
        dimensions={sample.pk: list(dimensions) or project.dimensions},
    )
    return sample, tasks


def make_task(project: Project | None = None, **fields: Any) -> Task:
    """One task on the shadows of a sample of its own."""
    _, tasks = make_sample(project or make_project(), dimensions=["physical_shadow"], **fields)
    return tasks[0]


def prepare(run: Run) -> Run:
    """Write down the tasks of a run that was started, as a worker's job would."""
    job = Job.objects.get(kind=JobKind.PREPARE_RUN, object_id=run.pk, state__in=Job.LIVE)
    with working(job.pk) as held:
        assert held is not None
        prepare_run(run, held)
    run.refresh_from_db()
    return run


def annotate(task: Task, annotator: Person | Annotator, answer: str = "", **fields: Any) -> Annotation:
    """Record an annotation; `answer` as letters, "AC". People are manual, other annotators what `approach` says."""
    if isinstance(annotator, Person):
        annotator = annotations_services.annotator_for(annotator)
    defaults: dict[str, Any] = {"approach": Approach.MANUAL, "idempotency_key": uuid.uuid4().hex}
    return annotations_services.record_annotation(
        annotations_services.NewAnnotation(
            task=task, annotator=annotator, answer=frozenset(answer), **defaults | fields
        )
    )
