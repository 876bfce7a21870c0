"""Which side of a dataset an original is on: chosen once by its content, kept for every later version.

An original with gold is never in train, because its answers check people: it goes to test, and stays out of train.
Not here: near-duplicates, which a later issue keeps on one side too.
"""

from __future__ import annotations

import hashlib

from annotation_server.annotations.models import GoldAnswer, Resolution
from annotation_server.datasets.models import Split, SplitAssignment
from annotation_server.projects.models import Project
from annotation_server.samples.models import Image


def side_by_content(project: Project, original_sha256: str) -> Split:
    """The side of a new original: the same whenever and in whatever order originals come."""
    digest = hashlib.sha256(f"{project.slug}/{original_sha256}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < project.test_share:
        return Split.TEST
    if place < project.test_share + project.validation_share:
        return Split.VALIDATION
    return Split.TRAIN


def assign_sides(project: Project) -> None:
    """Give every original with a resolved task its side, and take those that have gold by now out of train."""
    mine = SplitAssignment.objects.filter(project=project)
    originals = Resolution.objects.filter(task__project=project).values("task__sample__original")
    new = Image.objects.filter(pk__in=originals).exclude(pk__in=mine.values("original"))
    SplitAssignment.objects.bulk_create(
        [
            SplitAssignment(project=project, original=image, split=side_by_content(project, image.sha256))
            for image in new.iterator()
        ],
        batch_size=2000,
        ignore_conflicts=True,  # two freezes at once choose the same side
    )
    mine.filter(split=Split.TRAIN, original__in=originals_with_gold(project)).update(split=Split.TEST)


def originals_with_gold(project: Project) -> set[int]:
    """Ids of the project's originals that any gold answer is about."""
    gold = GoldAnswer.objects.filter(task__project=project)
    return set(gold.values_list("task__sample__original", flat=True))


def sides(project: Project) -> dict[int, Split]:
    """The side of every assigned original; gold that arrived a moment ago is out of train already."""
    assigned = SplitAssignment.objects.filter(project=project).values_list("original", "split")
    gold = originals_with_gold(project)
    return {
        original: Split.TEST if split == Split.TRAIN and original in gold else Split(split)
        for original, split in assigned.iterator()
    }
