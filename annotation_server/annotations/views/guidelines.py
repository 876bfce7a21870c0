"""A project's guidelines with their examples: the page, one dimension as a fragment, and what a manager changes.

Not here: the texts (projects/guidelines.py), who may see which example (../examples.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.examples import ExampleRefused, add_example, examples_shown, remove_example
from annotation_server.annotations.forms import ExampleForm
from annotation_server.annotations.selectors import pictures_of, shows_answers, task_in
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.projects.forms import GuidelinesForm
from annotation_server.projects.guidelines import (
    ShownExample,
    as_html,
    default_guidelines,
    default_phrases,
    guidelines_of,
    own_guidelines,
    phrases_of,
)
from annotation_server.projects.services import edit_guidelines
from trainer.contract.dimensions import Dimension


@dataclass(frozen=True, slots=True)
class Part:
    """One dimension of the guidelines as a template shows it."""

    dimension: Dimension
    html: SafeString
    phrases: list[str]
    examples: list[ShownExample]


@login_required
@require_GET
def guidelines(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug)
    context = {"access": access, "general": _html(access.project.guidelines), "parts": _parts(access)}
    return render(request, "annotations/guidelines.html", context)


@login_required
@require_GET
def fragment(request: AuthenticatedRequest, slug: str, dimension: str) -> HttpResponse:
    """One dimension without the page around it, for the annotating page's dialog."""
    access = access_to(request.user, slug)
    judged = _judged(access, dimension)
    part = next(part for part in _parts(access) if part.dimension == judged)
    context = {"access": access, "general": _html(access.project.guidelines), "part": part, "in_dialog": True}
    return render(request, "annotations/_guidelines.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def edit(request: AuthenticatedRequest, slug: str, dimension: str) -> HttpResponse:
    """The project's own text and phrases. With `preview` in what is sent nothing is saved."""
    access = access_to(request.user, slug, Capability.MANAGE)
    judged = _judged(access, dimension)
    stands = {
        "text": own_guidelines(access.project, judged),
        "phrases": "\n".join(access.project.phrases.get(judged.value, [])),
    }
    form = GuidelinesForm(request.POST or None, initial=stands)
    preview = "preview" in request.POST
    if request.method == "POST" and form.is_valid() and not preview:
        edit_guidelines(person=request.user, project=access.project, dimension=judged, **form.cleaned_data)
        messages.success(request, _("Saved."))
        return redirect("annotations:guidelines", slug)
    text = form.cleaned_data.get("text", "") if preview and form.is_valid() else stands["text"]
    context = {
        "access": access,
        "dimension": judged,
        "form": form,
        "shown": _html(text or default_guidelines(judged)),
        "our_text": default_guidelines(judged),
        "our_phrases": default_phrases(judged),
        "examples": [example for example in examples_shown(access)[judged] if example.own_id],
    }
    return render(request, "annotations/guidelines_form.html", context, status=422 if form.errors else 200)


@login_required
@require_http_methods(["GET", "POST"])
def use_as_example(request: AuthenticatedRequest, slug: str, task_id: int) -> HttpResponse:
    """Show one candidate of a judged task in the guidelines of its dimension."""
    access = access_to(request.user, slug, Capability.MANAGE)
    task = task_in(access.project, task_id)
    if task is None or not shows_answers(access, task):
        raise Http404
    pictures = pictures_of(task.sample)
    form = ExampleForm(request.POST or None, letters=[picture.letter for picture in pictures[1:]])
    if request.method == "POST" and form.is_valid():
        try:
            add_example(person=request.user, task=task, **form.cleaned_data)
        except ExampleRefused as refused:
            form.add_error(None, str(refused))
        else:
            return redirect("annotations:guidelines", slug)
    context = {"access": access, "task": task, "pictures": pictures, "form": form}
    return render(request, "annotations/example_form.html", context, status=422 if form.errors else 200)


@login_required
@require_POST
def remove(request: AuthenticatedRequest, slug: str, example_id: int) -> HttpResponse:
    access = access_to(request.user, slug, Capability.MANAGE)
    if not remove_example(person=request.user, project=access.project, example_id=example_id):
        raise Http404
    return redirect("annotations:guidelines", slug)


def _parts(access: Access) -> list[Part]:
    project = access.project
    return [
        Part(dimension, _html(guidelines_of(project, dimension)), phrases_of(project, dimension), examples)
        for dimension, examples in examples_shown(access).items()
    ]


def _html(markdown: str) -> SafeString:
    return mark_safe(as_html(markdown))  # noqa: S308 - Markdown is rendered with raw HTML off


def _judged(access: Access, name: str) -> Dimension:
    if name not in access.project.dimensions:
        raise Http404
    return Dimension(name)
