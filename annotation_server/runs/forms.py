"""Forms of endpoints and runs."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.annotations.models import Approach
from annotation_server.projects.models import Project
from annotation_server.projects.wording import DIMENSION_LABELS
from annotation_server.runs.models import Endpoint
from annotation_server.runs.selection import Wanted


class EndpointForm(forms.ModelForm):  # type: ignore[type-arg]  # no subscripts at run time
    """A new endpoint. The services make and check the row; the key itself never passes through here."""

    base_url = forms.URLField(
        label=_("Base URL"), max_length=500, assume_scheme="https", help_text=_("Up to and including /v1.")
    )

    class Meta:
        model = Endpoint
        fields = (
            "name",
            "base_url",
            "model",
            "api_key_env",
            "input_price",
            "output_price",
            "concurrency",
            "timeout_seconds",
            "image_side",
            "caveat",
        )
        labels = {  # noqa: RUF012 - Django reads it, nobody writes it
            "name": _("Name"),
            "model": _("Model"),
            "caveat": _("Mind"),
            "api_key_env": _("Environment variable with the key"),
            "input_price": _("Price of input"),
            "output_price": _("Price of output"),
            "concurrency": _("Calls at once"),
            "timeout_seconds": _("Timeout in seconds"),
            "image_side": _("Longest image side in pixels"),
        }

    def __init__(self, *args: Any, names_keys: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not names_keys:
            del self.fields["api_key_env"]

    def _post_clean(self) -> None:
        """Nothing: the model's own checks run in the service."""


class RunForm(forms.Form):
    """What a run is to do."""

    endpoint = forms.ModelChoiceField(label=_("Endpoint"), queryset=Endpoint.objects.order_by("name"), empty_label=None)
    approach = forms.ChoiceField(
        label=_("Approach"),
        choices=[
            (Approach.AUTOMATED.value, _("Automated: the model answers and explains")),
            (Approach.ANSWER_DRIVEN.value, _("Answer-driven: the model explains a person’s or gold answer")),
        ],
        widget=forms.RadioSelect,
        initial=Approach.AUTOMATED.value,
    )
    resolved_too = forms.BooleanField(
        label=_("Also tasks that have an answer"),
        required=False,
        help_text=_("To compare approaches. Answer-driven: also those that have a rationale."),
    )
    limit = forms.IntegerField(
        label=_("At most so many tasks"), required=False, min_value=1, help_text=_("Empty: all of them.")
    )
    budget_usd = forms.DecimalField(
        label=_("Budget in USD"),
        required=False,
        min_value=0,
        max_digits=12,
        decimal_places=6,
        help_text=_("The run pauses before it spends more. Empty: no bound."),
    )
    temperature = forms.FloatField(label=_("Temperature"), min_value=0, max_value=2, initial=0.0)
    max_tokens = forms.IntegerField(label=_("Tokens per reply at most"), min_value=16, max_value=32_768, initial=512)
    max_attempts = forms.IntegerField(label=_("Calls per task at most"), min_value=1, max_value=10, initial=3)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        self.fields["dimensions"] = forms.MultipleChoiceField(
            label=_("Dimensions"),
            choices=[(name.value, DIMENSION_LABELS[name]) for name in project.judged],
            required=False,
            widget=forms.CheckboxSelectMultiple,
            help_text=_("None ticked: all."),
        )
        self.order_fields(["endpoint", "approach", "dimensions"])

    def wanted(self) -> Wanted:
        return Wanted(
            project=self.project,
            endpoint=self.cleaned_data["endpoint"],
            approach=Approach(self.cleaned_data["approach"]),
            dimensions=self.cleaned_data["dimensions"],
            resolved_too=self.cleaned_data["resolved_too"],
            limit=self.cleaned_data["limit"],
        )

    def settings(self) -> dict[str, Any]:
        """What start_run takes beside what is wanted."""
        names = ("budget_usd", "temperature", "max_tokens", "max_attempts")
        return {name: self.cleaned_data[name] for name in names}
