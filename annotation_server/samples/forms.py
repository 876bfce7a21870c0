"""The form that names what to import: a path on the server, inside the home's `incoming` directory only.

Uploading through the browser has its own issue. An administrator imports from anywhere with `manage.py import_samples`.
"""

from __future__ import annotations

from pathlib import Path

from django import forms
from django.conf import settings
from django.utils.translation import gettext_lazy as _


def incoming() -> Path:
    """Where people who copy files to the server put what is to be imported."""
    return Path(settings.WINNOW_HOME) / "incoming"


class ImportForm(forms.Form):
    source = forms.CharField(
        label=_("Path inside “incoming”"),
        max_length=400,
        help_text=_("A samples.jsonl file, or a directory with a folder per sample."),
    )
    name = forms.CharField(
        label=_("Name"),
        required=False,
        max_length=200,
        help_text=_("Who the answers that come with the data are attributed to. Empty: the path."),
    )

    def clean_source(self) -> str:
        given: str = self.cleaned_data["source"]
        root = incoming().resolve()
        # Resolved first: neither dots nor a link may lead a member of one project to the rest of the disk.
        try:
            path = (root / given).resolve()
            found = path.is_relative_to(root) and path != root and path.exists()
        except (OSError, ValueError):
            found = False
        if not found:
            raise forms.ValidationError(_("There is no “%(path)s” in the incoming directory."), params={"path": given})
        return str(path)

    def source_name(self) -> str:
        """The given name, else the path below `incoming`."""
        default = Path(self.cleaned_data["source"]).relative_to(incoming().resolve())
        return self.cleaned_data["name"] or str(default)[:200]
