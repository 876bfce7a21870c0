"""Every job in a few lines: load by id, call, finish. Registered under the names the server knows (JobKind).

Not here: the work itself; holding a job and ending it (annotation_server/jobs/working.py).
"""

from __future__ import annotations

from collections.abc import Callable

from celery import shared_task

from annotation_server.annotations.imports import import_batch as do_import
from annotation_server.datasets import services as datasets_services
from annotation_server.datasets.exports import ExportFailed
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.services import FreezeRefused
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.working import HeldJob, JobRefused, working
from annotation_server.runs.models import EndpointTest, Run
from annotation_server.runs.preparation import prepare_run as do_prepare
from annotation_server.samples.importers import ImportRefused
from annotation_server.samples.models import ImportBatch
from annotation_workers import annotate, batches, endpoint_test

Work = Callable[[HeldJob], None]


def job(kind: JobKind, *refusals: type[Exception]) -> Callable[[Work], Work]:
    """Register work as the job of a kind. `refusals` are a person's mistakes: they end it with their one line."""

    def register(work: Work) -> Work:
        # Twice the same message, or one for work that somebody else holds, finds nothing to claim and does nothing.
        @shared_task(name=kind.value)
        def run(job_id: int) -> None:
            with working(job_id) as held:
                if held is not None:
                    try:
                        work(held)
                    except refusals as error:
                        raise JobRefused(str(error)) from None

        return work

    return register


@job(JobKind.IMPORT_BATCH, ImportRefused)
def import_batch(held: HeldJob) -> None:
    """Import a source into its project."""
    do_import(ImportBatch.objects.get(pk=held.object_id), held.progress)


@job(JobKind.PREPARE_RUN)
def prepare_run(held: HeldJob) -> None:
    """Write down the tasks of a run."""
    do_prepare(Run.objects.select_related("project", "endpoint__annotator").get(pk=held.object_id), held)


@job(JobKind.ANNOTATE_CHUNK)
def annotate_chunk(held: HeldJob) -> None:
    """Annotate one chunk of a run."""
    annotate.annotate_chunk(held)


@job(JobKind.BATCH_CHUNK)
def batch_chunk(held: HeldJob) -> None:
    """Bring the batches of one chunk of a run as far as they go."""
    batches.work_on_batches(held)


@job(JobKind.TEST_ENDPOINT)
def test_endpoint(held: HeldJob) -> None:
    """Call an endpoint once and keep what it said."""
    endpoint_test.call_once(EndpointTest.objects.select_related("endpoint").get(pk=held.object_id))


@job(JobKind.FREEZE_VERSION, FreezeRefused)
def freeze_version(held: HeldJob) -> None:
    """Freeze what is resolved."""
    datasets_services.freeze_version(DatasetVersion.objects.get(pk=held.object_id), held.progress)


@job(JobKind.EXPORT_VERSION, ExportFailed)
def export_version(held: HeldJob) -> None:
    """Write a version's directory."""
    datasets_services.export_version(Export.objects.get(pk=held.object_id), held.progress)
