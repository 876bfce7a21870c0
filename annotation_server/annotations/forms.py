"""The forms of judging: decisions above the votes, reviews, what pages are filtered by. Votes come through the API."""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.annotations.models import Annotation, Annotator, Approach, Resolution, Review
from annotation_server.annotations.review_queue import Kind, ReviewQueue, annotators_to_review
from annotation_server.annotations.selectors import TaskFilter
from annotation_server.projects.access import Access, Capability
from annotation_server.projects.models import Project
from annotation_server.projects.wording import DIMENSION_LABELS
from annotation_server.tasks.models import Task
from trainer.contract.answers import Answer
from trainer.contract.dimensions import DIMENSIONS, letters

MAX_RATIONALE = 20_000

SOURCE_LABELS = {
    Resolution.Source.GOLD.value: _("Known answer"),
    Resolution.Source.AGREEMENT.value: _("Agreement"),
    Resolution.Source.ADJUDICATION.value: _("Adjudication"),
    Resolution.Source.REVIEW.value: _("Review"),
    Resolution.Source.MODEL.value: _("Model"),
}


class JudgementForm(forms.Form):
    """Letters or none, and why. Sent again with the same key it changes nothing."""

    none = forms.BooleanField(required=False)
    rationale = forms.CharField(required=False, max_length=MAX_RATIONALE)
    idempotency_key = forms.CharField(max_length=80)

    def __init__(self, *args: Any, task: Task, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task = task
        choices = [(letter, letter) for letter in letters(task.candidate_count)]
        self.fields["letters"] = forms.MultipleChoiceField(required=False, choices=choices)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if "letters" in self.errors:
            return cleaned
        # An untouched form must not pass as "none": that is an answer, and has to be given.
        chosen, none = bool(cleaned["letters"]), cleaned["none"]
        if not chosen and not none:
            self.add_error("letters", _("Choose one or more candidates, or “none”."))
        elif chosen and none:
            self.add_error("letters", _("“None” and letters exclude each other."))
        return cleaned

    @property
    def chosen(self) -> list[str]:
        """The letters ticked so far, for showing a refused form again."""
        return list(self["letters"].value() or [])

    def answer(self) -> Answer:
        return frozenset(self.cleaned_data["letters"])


class DecisionForm(JudgementForm):
    """An adjudicator's decision on a disputed task."""

    @classmethod
    def blank(cls, *, task: Task) -> DecisionForm:
        return cls(initial={"idempotency_key": str(uuid.uuid4())}, task=task)


class ReviewForm(JudgementForm):
    """A reviewer's verdict on what stands for a task, or on one annotation of it (`before`)."""

    verdict = forms.ChoiceField(choices=Review.Verdict.choices)
    reason = forms.CharField(required=False, max_length=500)

    def __init__(self, *args: Any, before: Annotation | Resolution | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = before

    @classmethod
    def blank(cls, *, task: Task, before: Annotation | Resolution | None) -> ReviewForm:
        """As it was said, to be corrected."""
        answer = sorted(before.answer) if before else []
        initial = {
            "letters": answer,
            "none": before is not None and not answer,
            "rationale": _rationale_of(before),
            "idempotency_key": str(uuid.uuid4()),
        }
        return cls(initial=initial, task=task, before=before)

    @property
    def corrects(self) -> bool:
        return self.cleaned_data.get("verdict") == Review.Verdict.CORRECTED

    def clean(self) -> dict[str, Any]:
        if not self.corrects:
            # What was ticked meanwhile is part of no other verdict.
            self.cleaned_data |= {"letters": [], "none": True}
        cleaned = super().clean()
        if cleaned.get("verdict") == Review.Verdict.REJECTED and not cleaned.get("reason"):
            self.add_error("reason", _("Say why, for whoever decides it now."))
        if self.corrects and not self.errors and self.before is not None:
            unchanged = cleaned["rationale"].strip() == _rationale_of(self.before).strip()
            if unchanged and self.answer() == self.before.answer:
                self.add_error(None, _("Nothing was changed: accept it, or correct something."))
        return cleaned


def _rationale_of(before: Annotation | Resolution | None) -> str:
    if isinstance(before, Resolution):
        before = before.rationale_from
    return before.rationale if before is not None else ""


class ReviewQueueForm(forms.Form):
    """Which tasks to review (review_queue.py): its values stand in the page's address."""

    kind = forms.ChoiceField(choices=[(kind.value, kind.value) for kind in Kind])
    share = forms.FloatField(required=False, min_value=0.1, max_value=100, label=_("Share of resolved tasks"))
    confidence = forms.FloatField(required=False, min_value=0, max_value=1, label=_("Confidence below"))
    annotator = forms.ModelChoiceField(Annotator.objects.none(), required=False, label=_("Annotator"))
    first = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)
    last = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)
    after = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["annotator"] = forms.ModelChoiceField(
            annotators_to_review(project), required=False, label=_("Annotator")
        )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("kind") == Kind.ANNOTATOR and not cleaned.get("annotator") and not self.errors:
            self.add_error("annotator", _("Choose whose annotations to review."))
        return cleaned

    def queue(self) -> ReviewQueue:
        given = {name: value for name, value in self.cleaned_data.items() if value is not None and name != "after"}
        if "annotator" in given:
            given["annotator"] = given["annotator"].pk
        return ReviewQueue(**given | {"kind": Kind(given["kind"])})

    def address(self) -> dict[str, str]:
        """The queue as a query string says it."""
        return {name: self.data[name] for name in self.fields if name != "after" and self.data.get(name)}


class TaskFilterForm(forms.Form):
    """What the task browser may be filtered by; a value that is none of these filters nothing.

    Who may not see others' answers is not offered what tells of them.
    """

    state = forms.ChoiceField(required=False, label=_("State"), choices=[("", _("Any state")), *Task.State.choices])
    dimension = forms.ChoiceField(
        required=False,
        label=_("Dimension"),
        choices=[("", _("Any dimension")), *((name.value, DIMENSION_LABELS[name]) for name in DIMENSIONS)],
    )
    sample = forms.CharField(required=False, label=_("Sample begins with"), max_length=200, strip=True)
    approach = forms.ChoiceField(
        required=False, label=_("Approach"), choices=[("", _("Any approach")), *Approach.choices]
    )
    source = forms.ChoiceField(
        required=False, label=_("Resolved by"), choices=[("", _("Resolved by any")), *SOURCE_LABELS.items()]
    )
    annotator = forms.ModelChoiceField(
        Annotator.objects.none(), required=False, label=_("Annotator"), empty_label=_("Any annotator")
    )
    flagged = forms.BooleanField(required=False, label=_("Flagged"))
    skipped = forms.BooleanField(required=False, label=_("Skipped"))
    after = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)
    before = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)

    def __init__(self, *args: Any, access: Access, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if access.allows(Capability.SEE_ANSWERS):
            self.fields["annotator"] = forms.ModelChoiceField(
                annotators_to_review(access.project),
                required=False,
                label=_("Annotator"),
                empty_label=_("Any annotator"),
            )
        else:
            for name in ("approach", "source", "annotator"):
                del self.fields[name]
        if not access.allows(Capability.REVIEW):
            del self.fields["flagged"], self.fields["skipped"]

    def wanted(self) -> TaskFilter:
        self.is_valid()
        given = {name: value for name, value in self.cleaned_data.items() if value and name not in ("after", "before")}
        if "annotator" in given:
            given["annotator"] = given["annotator"].pk
        return TaskFilter(**given)

    def address(self) -> dict[str, str]:
        """The filters as a query string says them."""
        self.is_valid()
        chosen = {name for name, value in self.cleaned_data.items() if value} - {"after", "before"}
        return {name: self.data[name] for name in self.fields if name in chosen}


class ExampleForm(forms.Form):
    """Which candidate the guidelines are to show, and what is to be seen in it."""

    letter = forms.ChoiceField(label=_("Candidate"))  # its choices are the sample's
    flawed = forms.TypedChoiceField(
        label=_("In this dimension it is"),
        choices=[("yes", _("flawed")), ("no", _("fine"))],
        coerce=lambda chosen: chosen == "yes",
        widget=forms.RadioSelect,
    )
    caption = forms.CharField(
        label=_("Caption"), max_length=300, help_text=_("What is to be seen, in one or two sentences.")
    )

    def __init__(self, *args: Any, letters: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["letter"] = forms.ChoiceField(label=_("Candidate"), choices=[(name, name) for name in letters])
