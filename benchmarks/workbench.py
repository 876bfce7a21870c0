"""How long the queue and the ledger take as the project grows: claiming and recording, without HTTP around them.

The claim behind it: a claim costs the same at a thousand and at a hundred thousand tasks. The peer of each large
measurement is the same one on a small project, in the same run. Not here: the page and the API (their own issue).
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator

from benchmarks.measurement import Measurement, percentile

_SMALL, _LARGE, _SCALE, _ROUNDS = 250, 25_000, 128_000, 200
"""Samples of a small, a large and a full-size project; cycles measured in each."""


def measure(*, scale: bool) -> Iterator[Measurement]:
    """p95 of claim and record in a large project beside a small one, in a throw-away database without DATABASE_URL.

    Large is 100,000 tasks, with `scale` 512,000.
    """
    samples = _SCALE if scale else _LARGE
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("WINNOW_HOME", home)
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connection

        call_command("migrate", verbosity=0)
        small, large = _cycle_times(_SMALL), _cycle_times(samples)
        for index, step in enumerate(("claim", "record")):
            value, peer = percentile(large[index], 0.95) * 1000, percentile(small[index], 0.95) * 1000
            yield {
                "name": f"workbench.{step}_p95_ms",
                "value": round(value, 2),
                "unit": "ms",
                "peer": round(peer, 2),
                "ratio": round(peer / value, 2),
                "setting": f"{connection.vendor}, {4 * samples:,} tasks; peer: {4 * _SMALL:,} tasks, same run",
            }
        connection.close()


def _cycle_times(samples: int) -> tuple[list[float], list[float]]:
    """Seconds of each claim and each record in a new project with that many samples, most of them already done."""
    from annotation_server.accounts.models import Person
    from annotation_server.annotations.services import NewAnnotation, annotator_for, record_annotation
    from annotation_server.projects.models import Project
    from annotation_server.samples.models import Image, Sample
    from annotation_server.tasks.models import Slot
    from annotation_server.tasks.services import claim_next, create_tasks

    name = uuid.uuid4().hex
    project = Project.objects.create(slug=name, name=name)
    picture = Image.objects.create(
        sha256=name * 2, source_sha256=name * 2, extension="png", width=64, height=64, size=1
    )
    made = Sample.objects.bulk_create(
        [Sample(project=project, external_id=str(n), original=picture, content_sha256="") for n in range(samples)],
        batch_size=2000,
    )
    create_tasks(
        made,
        project=project,
        candidate_counts={sample.pk: 4 for sample in made},
        dimensions={sample.pk: project.dimensions for sample in made},
    )
    # Nine tenths are done: what is finished must not slow down what is left.
    done = Slot.objects.filter(project=project).order_by("position")[: samples * 4 * 9 // 10]
    last = list(done.values_list("position", flat=True))[-1]
    Slot.objects.filter(project=project, position__lte=last).update(state=Slot.State.DONE)
    person = Person.objects.create(username=name)
    annotator = annotator_for(person)
    claims, records = [], []
    for _ in range(min(_ROUNDS, samples * 4 // 10)):
        start = time.perf_counter()
        claim = claim_next(project, person)
        claims.append(time.perf_counter() - start)
        if claim is None:
            break
        start = time.perf_counter()
        record_annotation(
            NewAnnotation(
                task=claim.task,
                annotator=annotator,
                approach="manual",
                answer=frozenset("A"),
                idempotency_key=uuid.uuid4().hex,
                lease_token=claim.lease_token,
            )
        )
        records.append(time.perf_counter() - start)
    return claims, records
