"""What the page that compares approaches may be asked: over which tasks, of which endpoint, for which quality."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.projects.models import Project
from annotation_server.runs.comparison import Comparison, Measure, Reference
from annotation_server.runs.models import Endpoint

WANTED = 0.9
"""The quality that is aimed at until somebody says another."""


class ComparisonForm(forms.Form):
    """All of it optional: an empty address shows what most want to see."""

    tasks = forms.ChoiceField(
        label=_("Tasks"),
        required=False,
        choices=[("shared", _("That all approaches worked on")), ("all", _("All"))],
    )
    endpoint = forms.ModelChoiceField(
        label=_("Endpoint"),
        required=False,
        queryset=Endpoint.objects.none(),
        to_field_name="name",
        empty_label=_("All of them"),
    )
    quality = forms.FloatField(label=_("Right at least, in %"), required=False, min_value=0, max_value=100)
    reference = forms.ChoiceField(
        label=_("Right by"),
        required=False,
        choices=[("", _("Gold where there is any")), ("gold", _("Gold")), ("others", _("The resolution of others"))],
    )
    measure = forms.ChoiceField(
        label=_("Measured as"),
        required=False,
        choices=[("exact", _("Exact answers")), ("credit", _("Partial credit"))],
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        endpoints = Endpoint.objects.filter(runs__project=project).distinct().order_by("name")
        self.fields["endpoint"].queryset = endpoints  # type: ignore[attr-defined]  # the field of a model's choices has it

    @property
    def shared(self) -> bool:
        return bool(self._said("tasks") != "all")

    @property
    def chosen_endpoint(self) -> Endpoint | None:
        found: Endpoint | None = self._said("endpoint")
        return found

    @property
    def wanted(self) -> float:
        percent: float | None = self._said("quality")
        return WANTED if percent is None else percent / 100

    @property
    def chosen_measure(self) -> Measure:
        return Measure(self._said("measure") or Measure.EXACT)

    def reference_for(self, comparison: Comparison) -> Reference:
        said = self._said("reference")
        return Reference(said) if said else comparison.best_reference

    def _said(self, name: str) -> Any:
        """What was asked for, if it makes sense; the form says so where it does not."""
        self.is_valid()
        return self.cleaned_data.get(name)
