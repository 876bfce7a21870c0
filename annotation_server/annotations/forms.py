"""The forms of judging: a decision above the votes, the task browser's filter. Votes come through the API (api.py)."""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.projects.wording import DIMENSION_LABELS
from annotation_server.tasks.models import Task
from trainer.contract.answers import Answer
from trainer.contract.dimensions import DIMENSIONS, letters

MAX_RATIONALE = 20_000


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


class TaskFilterForm(forms.Form):
    """What the task browser may be filtered by; a value that is none of these filters nothing."""

    state = forms.ChoiceField(required=False, choices=[("", _("Any state")), *Task.State.choices])
    dimension = forms.ChoiceField(
        required=False,
        choices=[("", _("Any dimension")), *((name.value, DIMENSION_LABELS[name]) for name in DIMENSIONS)],
    )
    after = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)

    def filters(self) -> dict[str, Any]:
        self.is_valid()
        return {name: value for name, value in self.cleaned_data.items() if value}


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
