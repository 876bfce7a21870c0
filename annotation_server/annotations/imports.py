"""An import as a whole: samples, their tasks, and the answers and gold that came with them.

It stands here and not in samples/, because it writes through the queue and the ledger, which samples/ may not know.

Nothing half-written: every row and every image is checked before the first row is written, so a mistake anywhere
writes nothing. Nothing lost: rows are then written in short transactions of whole samples (samples, tasks and answers
together), so that annotators are never kept waiting for the database, and a kill leaves whole samples; the batch is
still RUNNING then, and doing it again finds them unchanged, decodes no image twice and goes on. Held in memory are the
rows and one small entry per image (about 1 kB per image, 640 MB at 640,000). Image bytes are stored before their
rows; those of a refused import lie in the store unused, where the next try finds them.
Not here: reading the source (samples/importers.py), storing images (samples/services.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from annotation_server.annotations.models import Annotation, Annotator, Approach, GoldAnswer
from annotation_server.annotations.services import NewAnnotation, add_gold, import_annotator, record_annotations
from annotation_server.progress import OnProgress, quiet
from annotation_server.samples import selectors
from annotation_server.samples.importers import ImportRefused, Mistakes, SampleRow, read_source
from annotation_server.samples.models import ImportBatch, Sample
from annotation_server.samples.services import NewSample, StoredImage, add_samples, store_images
from annotation_server.tasks.models import Task
from annotation_server.tasks.services import create_tasks
from trainer.contract.answers import Answer

_ROWS_AT_ONCE = 500
"""Samples and answers per transaction: about a second of writing, so that nobody else waits long."""


def import_batch(batch: ImportBatch, on_progress: OnProgress = quiet) -> None:
    """Do an import, or what is left of it. Done already: nothing. Raises ImportRefused, also kept in the batch."""
    batch.refresh_from_db()
    if batch.state == ImportBatch.State.DONE:
        return
    if batch.state == ImportBatch.State.FAILED:
        raise ImportRefused(batch.error)
    batch.state = ImportBatch.State.RUNNING
    batch.save(update_fields=["state"])
    try:
        rows, notes = _checked(batch, on_progress)
        _write(batch, rows, on_progress)
    except ImportRefused as error:
        _end(batch, ImportBatch.State.FAILED, error=str(error))
        raise
    batch.refresh_from_db()
    batch.notes = "\n".join(notes)
    batch.unchanged_samples = len(rows) - batch.created_samples
    batch.save(update_fields=["notes", "unchanged_samples"])
    _end(batch, ImportBatch.State.DONE)


def _end(batch: ImportBatch, state: ImportBatch.State, error: str = "") -> None:
    batch.state, batch.error, batch.finished_at = state, error, timezone.now()
    batch.save(update_fields=["state", "error", "finished_at"])


@dataclass(frozen=True, slots=True)
class _CheckedRow:
    row: SampleRow
    sample: NewSample


def _checked(batch: ImportBatch, on_progress: OnProgress) -> tuple[list[_CheckedRow], list[str]]:
    """Every row, its images stored, and the notes; ImportRefused with all mistakes where there is one."""
    on_progress(0, 0, f"reading {batch.source}")
    mistakes = Mistakes()
    source = read_source(Path(batch.source), batch.project.dimensions, mistakes)
    if mistakes.enough:
        mistakes.refuse()
    named = {path: (row.where, field) for row in reversed(source.rows) for field, path in row.images}
    # In the order of the rows, though the first row to name a path is the one a mistake is reported at.
    wanted = {path: named[path] for row in source.rows for _, path in row.images}
    stored = store_images(wanted, mistakes, on_progress)
    checked = [
        _CheckedRow(row, _new_sample(row, stored))
        for row in source.rows
        if all(path in stored for _, path in row.images)
    ]
    for some in _in_chunks(checked):
        _compare(batch, some, mistakes)
    mistakes.refuse()
    return checked, source.notes


def _new_sample(row: SampleRow, stored: Mapping[str, StoredImage]) -> NewSample:
    return NewSample(
        external_id=row.external_id,
        original=stored[row.original],
        candidates=tuple(stored[path] for path in row.candidates),
        meta=row.meta,
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the project has already of some rows."""

    samples: Mapping[str, Sample]
    tasks: Mapping[tuple[str, str], Task]
    answers: Mapping[int, Answer]
    """By task: what this import's source said before."""
    gold: Mapping[int, Answer]


def _compare(batch: ImportBatch, rows: Sequence[_CheckedRow], mistakes: Mistakes) -> _Known:
    """Look the rows up in the project. Whatever is there and differs is a mistake: an import adds, it never changes."""
    known = _look_up(batch, [checked.row.external_id for checked in rows])
    for checked in rows:
        row = checked.row
        sample = known.samples.get(row.external_id)
        if sample is None:
            continue
        if sample.content_sha256 != checked.sample.content_sha256:
            mistakes.add(
                row.where,
                f"field 'external_id': {row.external_id!r} is in the project with other images: "
                "expected the same images, or an external_id that is not used yet",
            )
            continue
        for field, given, before in (("answers", row.answers, known.answers), ("gold", row.gold, known.gold)):
            for dimension, answer in given.items():
                task = known.tasks.get((row.external_id, dimension))
                if task is None:
                    mistakes.add(row.where, f"field '{field}': {row.external_id!r} was imported without {dimension!r}")
                elif before.get(task.pk, answer) != answer:
                    mistakes.add(row.where, f"field '{field}.{dimension}': another answer was imported before")
    return known


def _look_up(batch: ImportBatch, external_ids: Sequence[str]) -> _Known:
    samples = selectors.samples_by_external_id(batch.project, external_ids)
    names = {sample.pk: name for name, sample in samples.items()}
    tasks = {(names[task.sample_id], task.dimension): task for task in Task.objects.filter(sample__in=names)}
    ids = [task.pk for task in tasks.values()]
    said = Annotation.objects.filter(
        annotator__kind=Annotator.Kind.IMPORT, annotator__name=batch.name, task__sample__in=names
    )
    gold = GoldAnswer.objects.filter(task__sample__in=names) if ids else GoldAnswer.objects.none()
    return _Known(
        samples=samples,
        tasks=tasks,
        answers=dict(said.values_list("task_id", "answer")),
        gold=dict(gold.values_list("task_id", "answer")),
    )


def _in_chunks(rows: Sequence[_CheckedRow]) -> Iterator[list[_CheckedRow]]:
    chunk: list[_CheckedRow] = []
    weight = 0
    for checked in rows:
        chunk.append(checked)
        weight += 1 + len(checked.row.answers) + len(checked.row.gold)
        if weight >= _ROWS_AT_ONCE:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk


def _write(batch: ImportBatch, rows: Sequence[_CheckedRow], on_progress: OnProgress) -> None:
    written = 0
    for some in _in_chunks(rows):
        try:
            _write_some(batch, some)
        except IntegrityError:
            # Another import has just written one of these samples: look again, and see it.
            _write_some(batch, some)
        written += len(some)
        on_progress(written, len(rows), "writing samples")


def _write_some(batch: ImportBatch, rows: Sequence[_CheckedRow]) -> None:
    with transaction.atomic():
        mistakes = Mistakes()
        known = _compare(batch, rows, mistakes)
        mistakes.refuse()  # only when somebody else changed the project since the rows were checked
        fresh = [checked for checked in rows if checked.row.external_id not in known.samples]
        tasks = {**known.tasks, **_add_with_tasks(batch, fresh)}
        annotations = _record_answers(batch, rows, tasks, known)
        gold = add_gold(
            {
                tasks[checked.row.external_id, dimension]: answer
                for checked in rows
                for dimension, answer in checked.row.gold.items()
            }
        )
        ImportBatch.objects.filter(pk=batch.pk).update(
            imported_annotations=F("imported_annotations") + annotations, gold_answers=F("gold_answers") + gold
        )


def _add_with_tasks(batch: ImportBatch, fresh: Sequence[_CheckedRow]) -> dict[tuple[str, str], Task]:
    samples = add_samples(batch, [checked.sample for checked in fresh])
    by_id = {sample.pk: checked.row for sample, checked in zip(samples, fresh, strict=True)}
    tasks = create_tasks(
        samples,
        project=batch.project,
        candidate_counts={pk: len(row.candidates) for pk, row in by_id.items()},
        dimensions={pk: row.dimensions for pk, row in by_id.items()},
    )
    return {(by_id[task.sample_id].external_id, task.dimension): task for task in tasks}


def _record_answers(
    batch: ImportBatch, rows: Sequence[_CheckedRow], tasks: Mapping[tuple[str, str], Task], known: _Known
) -> int:
    """Answers that came with the data are votes of their source. Returns how many are new."""
    wanted = [
        (tasks[checked.row.external_id, dimension], answer, checked.row.rationales.get(dimension, ""))
        for checked in rows
        for dimension, answer in checked.row.answers.items()
    ]
    new = [(task, answer, rationale) for task, answer, rationale in wanted if task.pk not in known.answers]
    if new:
        annotator = import_annotator(batch.name)
        record_annotations(
            [
                NewAnnotation(
                    task=task,
                    annotator=annotator,
                    approach=Approach.MANUAL,
                    answer=answer,
                    rationale=rationale,
                    idempotency_key=f"import:{task.pk}",
                )
                for task, answer, rationale in new
            ]
        )
    return len(new)
