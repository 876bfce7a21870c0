"""Which answer stands for a task, and which rationale: the project's rule applied to the ledger.

`settle` is called by services.py inside the transaction that wrote, with the tasks locked; nobody else sets a task's
state. Not here: recording (services.py), measuring agreement (its own issue).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from django.utils import timezone

from annotation_server.annotations.models import Annotation, Approach, GoldAnswer, Resolution, Review
from annotation_server.prepared import PreparedQuery, PreparedUpdate
from annotation_server.projects.models import Project
from annotation_server.tasks.models import Slot, Task
from trainer.contract.answers import Answer
from trainer.contract.dimensions import letters

_RATIONALE_PREFERENCE = {Approach.ANSWER_DRIVEN.value: 0, Approach.MANUAL.value: 1, Approach.AUTOMATED.value: 2}
"""Ours: a reasoning asked for on purpose stands before a note in passing, people before machines."""

_DECIDED_BY_SOMEBODY = (Resolution.Source.ADJUDICATION, Resolution.Source.REVIEW)


def agreed_answer(rule: str, votes: Sequence[Answer], candidate_count: int) -> Answer | None:
    """The answer of a complete set of votes under a rule, or None when they dispute.

    Unanimity: every vote the same. Majority: a candidate is in by more than half of the votes; a tie on any (an even
    overlap) is a dispute, never a coin toss. Adjudication: somebody looks at every one.
    """
    if rule == Project.ResolutionRule.UNANIMITY:
        return votes[0] if len(set(votes)) == 1 else None
    if rule == Project.ResolutionRule.ADJUDICATION:
        return None
    chosen = set()
    for letter in letters(candidate_count):
        share = sum(letter in vote for vote in votes) / len(votes)
        if share == 0.5:
            return None
        if share > 0.5:
            chosen.add(letter)
    return frozenset(chosen)


def settle(tasks: Sequence[Task]) -> None:
    """Bring state and resolution of locked tasks up to what the ledger says."""
    projects = {project.pk: project for project in _projects(projects=sorted({task.project_id for task in tasks}))}
    for start in range(0, len(tasks), 500):
        _settle_some(tasks[start : start + 500], projects)


def _settle_some(tasks: Sequence[Task], projects: Mapping[int, Project]) -> None:
    ids = [task.pk for task in tasks]
    known = _counted(tasks=ids)
    reviews = _reviews(tasks=ids)
    refused = {said.annotation_id for said in reviews if said.verdict == Review.Verdict.REJECTED}
    annotations: dict[int, list[Annotation]] = defaultdict(list)
    turned_down: dict[int, set[Answer]] = defaultdict(set)
    for annotation in known:
        # What a model said and a reviewer turned down counts for nothing, nor does another model saying the same
        # resolve the task; votes that were turned down still are votes.
        if annotation.standing == Annotation.Standing.ADVICE and annotation.pk in refused:
            turned_down[annotation.task_id].add(annotation.answer)
        else:
            annotations[annotation.task_id].append(annotation)
    advice = {annotation.pk for annotation in known if annotation.standing == Annotation.Standing.ADVICE}
    latest = {said.task_id: said.verdict for said in reviews if said.annotation_id not in advice}  # the last stands
    rejected = {task_id for task_id, verdict in latest.items() if verdict == Review.Verdict.REJECTED}
    wanted: Counter[int] = Counter()
    asking: set[int] = set()
    for task_id, of_slot in _slots(tasks=ids):
        wanted[task_id] += 1
        if of_slot != Slot.State.DONE:
            asking.add(task_id)
    gold = dict(_gold(tasks=ids))
    standing = {resolution.task_id: resolution for resolution in _standing(tasks=ids)}

    made, changed, removed = [], [], []
    states: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for task in tasks:
        before = standing.get(task.pk)
        after, state = _resolve(
            task,
            projects[task.project_id],
            annotations[task.pk],
            wanted[task.pk],
            gold.get(task.pk),
            before,
            rejected=task.pk in rejected,
            turned_down=turned_down[task.pk],
        )
        if after is None:
            if before is not None:
                removed.append(before.pk)
        elif before is None:
            made.append(after)
        elif any(getattr(before, name) != getattr(after, name) for name in _DECIDED_FIELDS):
            after.pk, after.updated_at = before.pk, timezone.now()
            changed.append(after)
        if (task.state, task.asking) != (state, task.pk in asking):
            task.state, task.asking = state, task.pk in asking
            states[task.state, task.asking].append(task.pk)
    if removed:
        Resolution.objects.filter(pk__in=removed).delete()
    Resolution.objects.bulk_create(made)
    if changed:
        fields = [*(name.removesuffix("_id") for name in _DECIDED_FIELDS), "updated_at"]
        Resolution.objects.bulk_update(changed, fields)
    for (state, still_asking), of_state in states.items():
        _set_state(tasks=of_state, state=state, asking=still_asking)


_COUNTED = (Annotation.Standing.VOTE, Annotation.Standing.ADVICE, Annotation.Standing.DECISION)


# What settling reads and writes, of some tasks at once: every answer of an annotator asks all of it.
_projects = PreparedQuery(lambda p: Project.objects.filter(pk__in=p("projects")))
_counted = PreparedQuery(
    lambda p: Annotation.objects.filter(task__id__in=p("tasks"), standing__in=_COUNTED).order_by("pk")
)
_reviews = PreparedQuery(
    lambda p: Review.objects.filter(task__id__in=p("tasks")).order_by("pk").only("task_id", "annotation_id", "verdict")
)
_slots = PreparedQuery(lambda p: Slot.objects.filter(task__id__in=p("tasks")).values_list("task_id", "state"))
_gold = PreparedQuery(lambda p: GoldAnswer.objects.filter(task__id__in=p("tasks")).values_list("task_id", "answer"))
_standing = PreparedQuery(lambda p: Resolution.objects.filter(task__id__in=p("tasks")))
_set_state = PreparedUpdate(
    lambda p: (Task.objects.filter(pk__in=p("tasks")), {"state": p("state"), "asking": p("asking")})
)

_DECIDED_FIELDS = ("answer", "source", "rationale_from_id", "votes", "agreement", "decided_by_id")


def _resolve(
    task: Task,
    project: Project,
    annotations: Sequence[Annotation],
    wanted: int,
    gold: Answer | None,
    before: Resolution | None,
    *,
    rejected: bool,
    turned_down: Collection[Answer],
) -> tuple[Resolution | None, str]:
    """The resolution that should stand for a task (unsaved), and the task's state.

    In order: a person's decision; gold; complete votes that agree; complete votes that dispute, or that a reviewer
    rejected, leave nothing standing; an automated annotation at the project's confidence.
    """
    votes = [annotation.answer for annotation in annotations if annotation.standing == Annotation.Standing.VOTE]
    decided_by = None
    state: str = Task.State.RESOLVED
    if before is not None and before.source in _DECIDED_BY_SOMEBODY:
        answer, source, decided_by = before.answer, before.source, before.decided_by_id
    elif gold is not None:
        answer, source = gold, Resolution.Source.GOLD.value
    elif wanted and len(votes) >= wanted:
        agreed = agreed_answer(project.resolution_rule, votes, task.candidate_count)
        if agreed is None or rejected:
            return None, Task.State.DISPUTED
        answer, source = agreed, Resolution.Source.AGREEMENT.value
    elif (trusted := trusted_annotation(project, annotations)) is not None and trusted.answer not in turned_down:
        answer, source = trusted.answer, Resolution.Source.MODEL.value
    else:
        return None, Task.State.OPEN
    rationale = _standing_rationale(annotations, answer)
    return (
        Resolution(
            task=task,
            answer=answer,
            source=source,
            rationale_from_id=rationale.pk if rationale else None,
            votes=len(votes),
            agreement=sum(vote == answer for vote in votes) / len(votes) if votes else None,
            decided_by_id=decided_by,
        ),
        state,
    )


def trusted_annotation(project: Project, annotations: Sequence[Annotation]) -> Annotation | None:
    """The latest automated one at the project's confidence; unknown confidence passes only a floor of 0."""
    if project.model_confidence is None:
        return None
    for annotation in reversed(annotations):
        confident = (annotation.confidence or 0.0) >= project.model_confidence
        if annotation.approach == Approach.AUTOMATED and confident:
            return annotation
    return None


def _standing_rationale(annotations: Sequence[Annotation], answer: Answer) -> Annotation | None:
    """The rationale that leads to `answer`: a decider's own words first, then by preference, the newest of equals."""
    fitting = [annotation for annotation in annotations if annotation.rationale and annotation.answer == answer]
    return min(
        fitting,
        key=lambda annotation: (
            annotation.standing != Annotation.Standing.DECISION,
            _RATIONALE_PREFERENCE[annotation.approach],
            -annotation.pk,
        ),
        default=None,
    )
