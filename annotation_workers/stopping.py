"""What ends the work on a chunk of a run before its tasks are settled, and what that does to the run and the job.

Not here: the work (annotate.py, batches.py), the run's states (annotation_server/runs/services.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from annotation_server.jobs.working import HeldJob, JobRefused, TryLater
from annotation_server.runs import services as runs_services
from annotation_server.runs.ledger import BudgetReached, RunStopped
from annotation_server.runs.models import Run
from annotation_workers.model_client import EndpointUnusable
from trainer.contract.prompts import PROMPT_VERSIONS


class EndpointAway(Exception):
    """The endpoint is down, or answers nobody for the moment; the message is one line."""


class RunEnded(Exception):
    """No call of this run can succeed; the message is one line."""


def check_prompt(run: Run) -> None:
    """Raises RunEnded where this program would ask with another prompt than the run says."""
    current = PROMPT_VERSIONS[runs_services.PROMPT_OF[run.approach]]
    if run.prompt_version != current:
        raise RunEnded(f"the run asks with prompt {run.prompt_version}, this program with {current}: start a new one")


@contextmanager
def stopping(job: HeldJob, run: Run) -> Iterator[None]:
    """Around the work: what it raises becomes the run's state and the job's end."""
    try:
        yield
    except (RunEnded, EndpointUnusable) as error:
        runs_services.fail(run, str(error))
        raise JobRefused(str(error)) from None
    except EndpointAway as error:
        if job.last_chance:
            # Not failed: what is missing is outside of the run, and it can go on once that is mended.
            runs_services.pause(run, reason=str(error))
        raise TryLater(str(error)) from None
    except BudgetReached as error:
        runs_services.pause(run, reason=str(error))
        job.outcome = str(error)
    except RunStopped:
        job.outcome = "The run was paused or ended."
