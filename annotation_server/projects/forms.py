"""Forms of a project's settings and members."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.accounts.models import Person
from annotation_server.projects.models import Membership, Project
from annotation_server.projects.wording import DIMENSION_LABELS
from trainer.contract.dimensions import DIMENSIONS


class ProjectForm(forms.ModelForm):  # type: ignore[type-arg]  # no subscripts at run time
    """What a manager sets. `cleaned_data` goes to the services, which save; this form never does."""

    dimensions = forms.MultipleChoiceField(
        label=_("Dimensions"),
        choices=[(dimension.value, DIMENSION_LABELS[dimension]) for dimension in DIMENSIONS],
        widget=forms.CheckboxSelectMultiple,
        initial=[dimension.value for dimension in DIMENSIONS],
        help_text=_("Each sample becomes one task per dimension. Applies to samples imported afterwards."),
    )

    class Meta:
        model = Project
        fields = (
            "name",
            "slug",
            "dimensions",
            "polarity",
            "overlap",
            "resolution_rule",
            "queue_order",
            "rationale_required",
            "shuffle_candidates",
            "gold_rate",
            "gold_floor",
            "gold_window",
            "guidelines",
            "lease_seconds",
            "show_pre_annotations",
            "model_confidence",
            "rationale_min_words",
            "rationale_max_words",
            "near_copy",
            "blind_resolve",
            "hourly_wage",
            "validation_share",
            "test_share",
        )
        widgets = {"polarity": forms.RadioSelect, "guidelines": forms.Textarea(attrs={"rows": 8})}  # noqa: RUF012
        labels = {  # noqa: RUF012
            "name": _("Name"),
            "slug": _("Short name"),
            "polarity": _("Letters of an answer list candidates that are"),
            "overlap": _("Votes per task"),
            "resolution_rule": _("A task is resolved when"),
            "guidelines": _("Guidelines"),
            "rationale_required": _("A rationale is required"),
            "queue_order": _("Tasks come as"),
            "shuffle_candidates": _("Shuffle candidates for each person"),
            "gold_rate": _("Share of tasks that are gold"),
            "gold_floor": _("Pause below this share of exact gold answers"),
            "gold_window": _("Gold answers that count for the pause"),
            "lease_seconds": _("Lease in seconds"),
            "show_pre_annotations": _("Show model annotations to annotators"),
            "model_confidence": _("Confidence at which a model resolves a task"),
            "rationale_min_words": _("Fewest words of a model’s reasoning"),
            "rationale_max_words": _("Most words of a model’s reasoning"),
            "near_copy": _("Likeness at which a reasoning is a near-copy"),
            "blind_resolve": _("Explained answers are solved again, blind"),
            "hourly_wage": _("Wage per hour in USD"),
            "validation_share": _("Share of originals for validation"),
            "test_share": _("Share of originals for test"),
        }
        help_texts = {  # noqa: RUF012
            "slug": _("In addresses and on the command line; cannot change."),
            "shuffle_candidates": _("Against order bias. Letters stay with their images."),
            "gold_rate": _("Mixed in so that nobody notices, from 0 (none) to 0.5."),
            "gold_floor": _("From 0 to 1; empty: nobody is paused. A manager or reviewer lets people go on."),
            "gold_window": _("So many of a person’s last gold answers, at least 5."),
            "lease_seconds": _("How long a claimed task is kept for a page that shows no sign of life."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            del self.fields["slug"]

    def clean_dimensions(self) -> list[str]:
        chosen = set(self.cleaned_data["dimensions"])
        return [dimension.value for dimension in DIMENSIONS if dimension.value in chosen]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        shares = (cleaned.get("validation_share"), cleaned.get("test_share"))
        if None not in shares and sum(share or 0 for share in shares) > 1:
            self.add_error("test_share", _("The shares for validation and test together leave nothing for training."))
        return cleaned

    def _post_clean(self) -> None:
        """Nothing: the model's own checks run in the service, so that the API and commands meet them too."""


class GuidelinesForm(forms.Form):
    """A project's own text and phrases for one dimension."""

    text = forms.CharField(
        label=_("Text"),
        required=False,
        max_length=20_000,
        widget=forms.Textarea(attrs={"rows": 22}),
        help_text=_("Markdown; HTML is shown as it is written. Empty: our text stands."),
    )
    phrases = forms.CharField(
        label=_("Phrases for rationales"),
        required=False,
        max_length=10_000,
        widget=forms.Textarea(attrs={"rows": 9}),
        help_text=_("One per line, up to 30. Empty: our phrases stand."),
    )

    def clean_phrases(self) -> list[str]:
        lines = [line.strip() for line in self.cleaned_data["phrases"].splitlines() if line.strip()]
        if len(lines) > 30 or any(len(line) > 200 for line in lines):
            raise forms.ValidationError(_("At most 30 phrases of at most 200 characters each."))
        return lines


class MemberForm(forms.Form):
    username = forms.CharField(label=_("Sign-in name"), max_length=150)
    role = forms.ChoiceField(label=_("Role"), choices=Membership.Role.choices, initial=Membership.Role.ANNOTATOR)

    def clean_username(self) -> str:
        username: str = self.cleaned_data["username"]
        person = Person.objects.filter(username=username, is_active=True).first()
        if person is None:
            raise forms.ValidationError(_("Nobody signs in as “%(name)s”."), params={"name": username})
        self.member = person
        return username
