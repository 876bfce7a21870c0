"""A run through the endpoint's Batch API: what comes home, what does not, and that nothing is asked or charged twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Project
from annotation_server.runs import batch_selectors, selectors, services
from annotation_server.runs.models import Attempt, Endpoint, RawResponse, RequestBatch, Run, RunTask
from annotation_server.runs.selection import Wanted
from annotation_workers import batches
from tests.workers.conftest import FakeEndpoint, MakeEndpoint
from tests.workers.scenes import project_with_tasks

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every tenth of a second."""
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.1)
    monkeypatch.setattr(batches, "LAST_LOOK", 0.1)
    monkeypatch.setattr(batches, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(batches, "QUEUE_FULL_SECONDS", 0.2)
    monkeypatch.setattr(batches, "CREATE_SETTLES", 1.0)


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    endpoint = make_endpoint()
    services.change_endpoint(endpoint, {"overrides": {"batches": True}})
    return endpoint


@pytest.fixture(autouse=True)
def charged_once(fake: FakeEndpoint) -> Iterator[None]:
    """After every test: no request was ever charged twice, and every charge is of an attempt."""
    yield
    charges = fake.charges()
    assert {charge["calls"] for charge in charges.values()} <= {1}
    assert set(charges) <= {str(name) for name in Attempt.objects.values_list("request_id", flat=True)}


def start(
    project: Project, endpoint: Endpoint, approach: Approach = Approach.AUTOMATED, **fields: object
) -> Run:
    wanted = Wanted(project=project, endpoint=endpoint, approach=approach)
    return services.start_run(wanted, batched=True, **fields)  # type: ignore[arg-type]


def states(run: Run) -> dict[str, int]:
    return dict(Counter(RunTask.objects.filter(run=run).values_list("state", flat=True)))


def test_it_works(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, tasks = project_with_tasks(6)
    run = start(project, endpoint)
    work()

    run.refresh_from_db()
    assert (run.state, run.error) == (Run.State.DONE, "")
    annotations = Annotation.objects.filter(annotator=endpoint.annotator)
    assert sorted(a.task_id for a in annotations) == [task.pk for task in tasks]
    assert {(a.answer, a.rationale) for a in annotations} == {
        (frozenset("A"), "A stands on the ground; B floats above it.")
    }
    batch = RequestBatch.objects.get()
    assert (batch.state, batch.requests, batch.answered, batch.ignored) == ("home", 6, 6, {})
    assert set(fake.charges()) == {str(name) for name in Attempt.objects.values_list("request_id", flat=True)}
    progress = selectors.run_progress(run)
    assert (progress.accepted, progress.calls, progress.cost_usd) == (6, 6, Decimal("3.15"))
    chunk = run.chunks.get()
    assert (chunk.reserved_usd, chunk.on_their_way) == (0, 0)
    body = RawResponse.objects.first()
    assert body is not None
    assert body.body.startswith('{"id": "req-')
