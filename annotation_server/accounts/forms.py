"""The forms of preferences and tokens. Signing in and changing a password use Django's own."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.http import QueryDict
from django.utils.translation import gettext_lazy as _

from annotation_server.accounts.models import ApiToken
from annotation_server.accounts.preferences import ACTION_LABELS, DEFAULT_KEYS, Preferences, key_mistakes


class TokenForm(forms.ModelForm):  # type: ignore[type-arg]  # no subscripts at run time
    class Meta:
        model = ApiToken
        fields = ("name",)
        labels = {"name": _("Name")}  # noqa: RUF012 - Django reads it, nobody writes it
        help_texts = {"name": _("Where it will be used, for example “import script”.")}  # noqa: RUF012


class PreferencesForm(forms.Form):
    """Theme, language, and one field per key. A space is written “Space”, because it could not be seen."""

    theme = forms.ChoiceField(
        label=_("Colours"),
        choices=[("auto", _("As my system has them")), ("light", _("Light")), ("dark", _("Dark"))],
        widget=forms.RadioSelect,
    )
    language = forms.ChoiceField(
        label=_("Language"),
        required=False,
        choices=[("", _("As my browser asks for")), *settings.LANGUAGES],
        widget=forms.RadioSelect,
    )

    def __init__(self, data: QueryDict | None, *, stands: Preferences) -> None:
        keys = {action: "Space" if key == " " else key for action, key in stands.keys.items()}
        super().__init__(data, initial={"theme": stands.theme, "language": stands.language} | keys)
        for action, label in ACTION_LABELS.items():
            box = forms.TextInput(attrs={"data-key-box": True, "autocomplete": "off", "spellcheck": "false"})
            self.fields[action] = forms.CharField(label=str(label), max_length=12, required=False, widget=box)

    def key_fields(self) -> list[forms.BoundField]:
        return [self[action] for action in ACTION_LABELS]

    def keys(self) -> dict[str, str]:
        """Of every action; an empty field means the default."""
        given = {action: self.cleaned_data.get(action) or DEFAULT_KEYS[action] for action in ACTION_LABELS}
        return {action: " " if key == "Space" else key for action, key in given.items()}

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        for action, mistake in key_mistakes(self.keys()).items():
            self.add_error(action, mistake)
        return cleaned
