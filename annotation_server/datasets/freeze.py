"""From resolved tasks to the canonical records of a version, read in one consistent view of the database.

Records are built a thousand at a time in order of their id, so that the largest project fits in memory: held for all of
it are an id and a key per record, and a side per original. Not here: the version's row (services.py), directories
(exports.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Prefetch, QuerySet

from annotation_server.annotations.models import Resolution
from annotation_server.datasets.models import DatasetVersion, Split
from annotation_server.datasets.splits import sides
from annotation_server.progress import OnProgress
from annotation_server.samples.models import Candidate, Image
from annotation_server.tasks.models import Task
from trainer.contract.dimensions import AnswerSource, Approach, Dimension, Polarity
from trainer.contract.dimensions import Split as ContractSplit
from trainer.contract.prompts import PROMPT_VERSIONS, PromptKind
from trainer.contract.records import ImageFile, Record

_AT_ONCE = 1000


@contextmanager
def one_view() -> Iterator[None]:
    """Every query in the block sees the database as it was at its start, and nobody waits for it.

    Our SQLite transactions take the write lock at once, which would stop all annotators: here a plain BEGIN reads from
    the write-ahead log's snapshot. Inside a caller's transaction (a test) that one's view has to do.
    """
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("BEGIN DEFERRED")
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")
    else:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield


@contextmanager
def from_aside(on_progress: OnProgress) -> Iterator[OnProgress]:
    """The same callback, called in a thread with a database connection of its own.

    A job's progress is a row: within `one_view` this connection may not write it.
    """
    with ThreadPoolExecutor(max_workers=1) as aside:
        try:
            yield lambda done, total, message: aside.submit(on_progress, done, total, message).result()
        finally:
            aside.submit(lambda: connection.close()).result()


@dataclass(slots=True)
class Tally:
    """What a version holds, counted while it is written."""

    records: int = 0
    dimensions: Counter[str] = field(default_factory=Counter)
    approaches: Counter[str] = field(default_factory=Counter)
    answer_sources: Counter[str] = field(default_factory=Counter)
    originals: set[str] = field(default_factory=set)
    withdrawn: int = 0
    """Resolved tasks left out because one of their images was taken down."""

    def add(self, record: Record) -> None:
        """Count one record."""
        self.records += 1
        self.dimensions[record.dimension.value] += 1
        self.approaches[record.approach.value if record.approach else "none"] += 1
        self.answer_sources[record.answer_source.value] += 1
        self.originals.add(record.original.sha256)

    def summary(self) -> dict[str, object]:
        """For the version's row and its pages."""
        return {
            "records": self.records,
            "originals": len(self.originals),
            "dimensions": dict(sorted(self.dimensions.items())),
            "approaches": dict(sorted(self.approaches.items())),
            "answer_sources": dict(sorted(self.answer_sources.items())),
            "withdrawn": self.withdrawn,
        }


def records_in_order(version: DatasetVersion, tally: Tally) -> Iterator[tuple[Record, int]]:
    """(record, how many there will be) of every resolved task by id, counted in `tally`. Call it in `one_view`.

    A task resolved so late that its original has no side yet belongs to the next version.
    """
    side = sides(version.project)
    resolved = Resolution.objects.filter(task__project=version.project, task__state=Task.State.RESOLVED)
    kept = resolved.filter(task__sample__original__withdrawn_at=None).exclude(_shows_withdrawn())
    tally.withdrawn = resolved.count() - kept.count()
    rows = kept.values_list("task__sample__external_id", "task__dimension", "pk", "task__sample__original")
    # Sorted here, because databases do not agree on the order of texts, and the id's order is part of the content.
    order = sorted(
        (f"{external_id}:{dimension}", pk)
        for external_id, dimension, pk, original in rows.iterator()
        if original in side
    )
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        found = _with_all(Resolution.objects.filter(pk__in=[pk for _, pk in some])).in_bulk()
        for record_id, pk in some:
            record = _record(record_id, found[pk], Polarity(version.polarity), side[found[pk].task.sample.original_id])
            tally.add(record)
            yield record, len(order)


def _shows_withdrawn() -> Exists:
    return Exists(Candidate.objects.filter(sample=OuterRef("task__sample"), image__withdrawn_at__isnull=False))


def _with_all(resolutions: QuerySet[Resolution]) -> QuerySet[Resolution]:
    # Images are joined, not prefetched: Django asks SQLite for those by one OR each, and it refuses a thousand.
    candidates = Prefetch("task__sample__candidates", Candidate.objects.select_related("image"))
    return resolutions.select_related("task__sample__original", "rationale_from").prefetch_related(candidates)


def _record(record_id: str, resolution: Resolution, polarity: Polarity, split: Split) -> Record:
    task, rationale = resolution.task, resolution.rationale_from
    candidates = task.sample.candidates.all()
    return Record(
        id=record_id,
        sample_id=task.sample.external_id,
        split=ContractSplit(split.value),
        dimension=Dimension(task.dimension),
        polarity=polarity,
        original=_image_file(task.sample.original),
        candidates=tuple(_image_file(candidate.image) for candidate in candidates),
        answer=resolution.answer,
        answer_source=AnswerSource(resolution.source),
        rationale=rationale.rationale if rationale else "",
        approach=Approach(rationale.approach) if rationale else None,
        annotators=resolution.votes,
        agreement=resolution.agreement,
        prompt_version=(rationale.prompt_version if rationale else "") or PROMPT_VERSIONS[PromptKind.ASK],
        meta=task.sample.meta | ({"marks": rationale.marks} if rationale and rationale.marks else {}),
    )


def _image_file(image: Image) -> ImageFile:
    return ImageFile(path=image.path, sha256=image.sha256, width=image.width, height=image.height)
