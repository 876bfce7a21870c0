"""The form that names a version to freeze."""

from django import forms
from django.utils.translation import gettext_lazy as _


class FreezeForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=120, help_text=_("For people; the version’s id is its content."))
