"""The form of the token page. Signing in and changing a password use Django's own forms."""

from django import forms
from django.utils.translation import gettext_lazy as _

from annotation_server.accounts.models import ApiToken


class TokenForm(forms.ModelForm):  # type: ignore[type-arg]  # no subscripts at run time
    class Meta:
        model = ApiToken
        fields = ("name",)
        labels = {"name": _("Name")}  # noqa: RUF012 - Django reads it, nobody writes it
        help_texts = {"name": _("Where it will be used, for example “import script”.")}  # noqa: RUF012
