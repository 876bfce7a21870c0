"""Forms of endpoints and runs."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.annotations.models import Approach
from annotation_server.projects.models import Project
from annotation_server.projects.wording import DIMENSION_LABELS
from annotation_server.runs.models import Endpoint, Feature
from annotation_server.runs.selection import Wanted
from annotation_server.runs.services import CHANGEABLE, MOST_SAMPLES


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
            "cached_input_price",
            "batch_price",
            "concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "timeout_seconds",
            "image_side",
            "images_as",
            "caveat",
        )
        labels = {  # noqa: RUF012 - Django reads it, nobody writes it
            "name": _("Name"),
            "model": _("Model"),
            "caveat": _("Mind"),
            "api_key_env": _("Environment variable with the key"),
            "input_price": _("Price of input"),
            "output_price": _("Price of output"),
            "cached_input_price": _("Price of cached input"),
            "batch_price": _("Share of the prices in a batch"),
            "concurrency": _("Calls at once"),
            "requests_per_minute": _("Calls per minute"),
            "tokens_per_minute": _("Tokens per minute"),
            "images_as": _("Images go"),
            "timeout_seconds": _("Timeout in seconds"),
            "image_side": _("Longest image side in pixels"),
        }

    def __init__(self, *args: Any, names_keys: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not names_keys:
            del self.fields["api_key_env"]
        for name in _LEFT_AT_DEFAULT:
            self.fields[name].required = False

    def clean(self) -> dict[str, Any]:
        """What was left out is as the model has it by default."""
        given = super().clean() or self.cleaned_data
        unset = Endpoint()
        left_out = [name for name in _LEFT_AT_DEFAULT if given.get(name) in (None, "")]
        return given | {name: getattr(unset, name) for name in left_out}

    def _post_clean(self) -> None:
        """Nothing: the model's own checks run in the service."""


_LEFT_AT_DEFAULT = ("batch_price", "requests_per_minute", "tokens_per_minute", "images_as")


class EndpointChangeForm(EndpointForm):
    """Other prices, limits and abilities of an endpoint."""

    class Meta(EndpointForm.Meta):
        fields = tuple(name for name in CHANGEABLE if name != "overrides")  # type: ignore[assignment]

    def __init__(self, *args: Any, endpoint: Endpoint, **kwargs: Any) -> None:
        super().__init__(*args, instance=endpoint, names_keys=True, **kwargs)
        del self.fields["base_url"]
        for feature in Feature:
            self.fields[feature.value] = forms.ChoiceField(
                label=feature.label,
                choices=[("", _("as the test found it")), ("yes", _("yes")), ("no", _("no"))],
                required=False,
                initial={True: "yes", False: "no"}.get(endpoint.overrides.get(feature.value), ""),
            )

    def changes(self) -> dict[str, Any]:
        """What change_endpoint takes."""
        said = {feature.value: self.cleaned_data.get(feature.value) for feature in Feature}
        fields = {name: value for name, value in self.cleaned_data.items() if name not in said}
        return fields | {"overrides": {feature: answer == "yes" for feature, answer in said.items() if answer}}


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
    budget_calls = forms.IntegerField(
        label=_("Budget in calls"),
        required=False,
        min_value=1,
        help_text=_("The run pauses before it makes more. Empty: no bound."),
    )
    temperature = forms.FloatField(label=_("Temperature"), min_value=0, max_value=2, initial=0.0)
    max_tokens = forms.IntegerField(label=_("Tokens per reply at most"), min_value=16, max_value=32_768, initial=512)
    max_attempts = forms.IntegerField(
        label=_("Tries per task at most"),
        min_value=1,
        max_value=10,
        initial=3,
        help_text=_("A try is a call, and a second one where reasonings are solved again."),
    )
    samples = forms.IntegerField(
        label=_("Samples per task"),
        min_value=1,
        max_value=MOST_SAMPLES,
        initial=1,
        required=False,
        help_text=_("Automated: from two on their answers vote, and the share of votes is the confidence."),
    )
    permute = forms.BooleanField(label=_("Candidates in another order for every sample"), required=False)
    logprobs = forms.BooleanField(
        label=_("Confidence from log-probabilities"),
        required=False,
        help_text=_("Automated, one sample. The endpoint has to have that feature."),
    )
    json_answers = forms.BooleanField(
        label=_("Answers in a JSON schema"),
        required=False,
        help_text=_("Automated: a completion then always can be read. The endpoint has to have that feature."),
    )
    batched = forms.BooleanField(
        label=_("Through the Batch API"),
        required=False,
        help_text=_("Cheaper, and answered within 24 hours. The endpoint has to have that feature."),
    )

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

    def clean_samples(self) -> int:
        """Left out, it is one."""
        return self.cleaned_data["samples"] or 1

    def sizes(self) -> dict[str, Any]:
        """What an estimate takes beside what is wanted."""
        return {name: self.cleaned_data[name] for name in ("max_tokens", "samples", "permute", "batched")}

    def settings(self) -> dict[str, Any]:
        """What start_run takes beside what is wanted."""
        names = (
            "budget_usd",
            "budget_calls",
            "temperature",
            "max_tokens",
            "max_attempts",
            "samples",
            "permute",
            "logprobs",
            "json_answers",
            "batched",
        )
        return {name: self.cleaned_data[name] for name in names}
