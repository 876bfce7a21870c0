"""A project's own examples in its guidelines: made of candidates that have been judged, and shown blindly.

An example says whether a candidate is flawed, which is the answer of every task that shows it. So only candidates that
nobody may still be asked about become examples, and should that change, they are hidden from whom it concerns.

Not here: our own drawn examples and the texts (projects/guidelines.py).
"""

from __future__ import annotations

from collections import defaultdict

from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils.translation import gettext as _

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import audit
from annotation_server.annotations.models import GoldAnswer
from annotation_server.annotations.selectors import tasks_open_to
from annotation_server.projects.access import Access, Capability
from annotation_server.projects.guidelines import ShownExample, default_examples
from annotation_server.projects.models import Project
from annotation_server.samples.models import Example
from annotation_server.tasks.models import Slot, Task
from trainer.contract.dimensions import Dimension


class ExampleRefused(ValueError):
    """Why a candidate cannot be an example, in one line."""


def add_example(*, person: Person, task: Task, letter: str, caption: str, flawed: bool) -> Example:
    """Show a task's candidate in the guidelines. Raises ExampleRefused."""
    candidate = task.sample.candidates.select_related("image").filter(letter=letter).first()
    if candidate is None:
        raise ExampleRefused(_("There is no such candidate."))
    if candidate.image.withdrawn_at or task.sample.original.withdrawn_at:
        raise ExampleRefused(_("The image was taken down."))
    showing = Task.objects.filter(
        project=task.project, dimension=task.dimension, sample__candidates__image=candidate.image
    )
    wanted = Slot.objects.filter(task__in=showing).exclude(state=Slot.State.DONE)
    if wanted.exists() or GoldAnswer.objects.filter(task__in=showing).exists():
        raise ExampleRefused(
            _("Somebody may still be asked about this candidate: an example would give the answer away.")
        )
    try:
        with transaction.atomic():
            example = Example.objects.create(
                project=task.project,
                dimension=task.dimension,
                original=task.sample.original,
                image=candidate.image,
                caption=caption,
                flawed=flawed,
            )
            audit(person=person, verb="example.add", subject=example, task=task.pk, letter=letter)
    except IntegrityError:
        raise ExampleRefused(_("This candidate is an example already.")) from None
    return example


def remove_example(*, person: Person, project: Project, example_id: int) -> bool:
    """Take an example out of the guidelines; False when it is not there."""
    example = project.examples.filter(pk=example_id).first()
    if example is None:
        return False
    with transaction.atomic():
        audit(person=person, verb="example.remove", subject=example, dimension=example.dimension)
        example.delete()
    return True


def own_examples(access: Access) -> dict[Dimension, list[ShownExample]]:
    """The project's examples that this person may see, in the order they were added."""
    found = access.project.examples.filter(image__withdrawn_at=None, original__withdrawn_at=None)
    examples = list(found.select_related("image", "original").order_by("pk"))
    images = {example.image_id for example in examples}
    showing: dict[tuple[str, int], set[int]] = defaultdict(set)
    tasks = Task.objects.filter(project=access.project, sample__candidates__image__in=images)
    for task_id, dimension, image_id in tasks.values_list("pk", "dimension", "sample__candidates__image"):
        showing[dimension, image_id].add(task_id)
    hidden = tasks_open_to(access.person, set().union(*showing.values())) if access.allows(Capability.ANNOTATE) else ()
    shown: dict[Dimension, list[ShownExample]] = defaultdict(list)
    for example in examples:
        if showing[example.dimension, example.image_id].isdisjoint(hidden):
            shown[Dimension(example.dimension)].append(
                ShownExample(
                    left=reverse("samples:preview", args=[example.original.sha256]),
                    left_is_original=True,
                    right=reverse("samples:preview", args=[example.image.sha256]),
                    caption=example.caption,
                    flawed=example.flawed,
                    own_id=example.pk,
                )
            )
    return shown


def examples_shown(access: Access) -> dict[Dimension, list[ShownExample]]:
    """Per dimension of the project its own examples, then ours."""
    own = own_examples(access)
    return {dimension: own.get(dimension, []) + default_examples(dimension) for dimension in access.project.judged}
