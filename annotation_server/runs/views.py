"""Pages of model annotation: endpoints and their connection tests, runs, a run's live progress and refused attempts.

No page calls a model: tests and runs are jobs. Not here: what a call writes (ledger.py).
"""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.services import audit
from annotation_server.annotations.selectors import tasks_shown_to
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.projects.access import Access, Capability, access_to, may_name_keys, may_use_endpoints
from annotation_server.runs import services
from annotation_server.runs.batch_selectors import batch_progress
from annotation_server.runs.forms import EndpointChangeForm, EndpointForm, RunForm
from annotation_server.runs.models import Endpoint, EndpointTest, Feature, Run
from annotation_server.runs.pacing import calls_at_once, pace_of
from annotation_server.runs.selectors import (
    check_counts,
    estimate,
    other_refusals,
    refusals,
    refused_attempts,
    run_progress,
    said_in_run,
    spent_on_tests,
)

ATTEMPTS_SHOWN = 50


@login_required
@require_http_methods(["GET", "POST"])
def endpoints(request: AuthenticatedRequest) -> HttpResponse:
    _require_endpoints(request)
    form = EndpointForm(request.POST or None, names_keys=may_name_keys(request.user))
    if request.method == "POST" and form.is_valid():
        try:
            endpoint = services.create_endpoint(**form.cleaned_data)
        except services.EndpointRefused as refused:
            form.add_error(None, str(refused))
        else:
            audit(person=request.user, verb="endpoint.create", subject=endpoint, base_url=endpoint.base_url)
            return redirect("runs:endpoint", endpoint.name)
    context = {"form": form, "endpoints": Endpoint.objects.order_by("name")}
    return render(request, "runs/endpoints.html", context, status=422 if form.errors else 200)


@login_required
@require_http_methods(["GET", "POST"])
def endpoint(request: AuthenticatedRequest, name: str) -> HttpResponse:
    """An endpoint, how fast it is called, and its last test; posting asks for another one."""
    _require_endpoints(request)
    found = get_object_or_404(Endpoint, name=name)
    if request.method == "POST":
        services.start_endpoint_test(found)
        return redirect("runs:endpoint", name)
    return _endpoint_page(request, found, EndpointChangeForm(endpoint=found))


@login_required
@require_POST
def change_endpoint(request: AuthenticatedRequest, name: str) -> HttpResponse:
    """Other prices, limits or abilities."""
    _require_endpoints(request)
    found = get_object_or_404(Endpoint, name=name)
    form = EndpointChangeForm(request.POST, endpoint=found)
    if form.is_valid():
        changes = form.changes()
        try:
            services.change_endpoint(found, changes)
        except services.EndpointRefused as refused:
            form.add_error(None, str(refused))
        else:
            audit(person=request.user, verb="endpoint.change", subject=found, fields=sorted(changes))
            return redirect("runs:endpoint", name)
    return _endpoint_page(request, get_object_or_404(Endpoint, name=name), form)


def _endpoint_page(request: AuthenticatedRequest, found: Endpoint, form: EndpointChangeForm) -> HttpResponse:
    test = found.tests.order_by("-pk").first()
    pace = pace_of(found)
    resting = pace.resting_until if pace.resting_until and pace.resting_until > timezone.now() else None
    context: dict[str, object] = {
        "endpoint": found,
        "form": form,
        "pace": pace,
        "resting": resting,
        "at_once": calls_at_once(found, pace),
        "tests": found.tests.count(),
        "spent": spent_on_tests(found),
        "features": [(feature.label, found.can(feature), feature in found.overrides) for feature in Feature],
    }
    context |= _tested(test) if test else {}
    return render(request, "runs/endpoint.html", context, status=422 if form.errors else 200)


@login_required
@require_GET
def endpoint_test(request: AuthenticatedRequest, test_id: int) -> HttpResponse:
    _require_endpoints(request)
    return render(request, "runs/_test.html", _tested(get_object_or_404(EndpointTest, pk=test_id)))


@login_required
@require_GET
def run_list(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    runs = access.project.runs.select_related("endpoint", "person").order_by("-pk")[:ATTEMPTS_SHOWN]
    rows = [{"run": run, "progress": run_progress(run)} for run in runs]
    return render(request, "runs/list.html", {"access": access, "rows": rows})


@login_required
@require_http_methods(["GET", "POST"])
def start(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    """The form; with `estimate` pressed what the run would cost, else the run."""
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    form = RunForm(request.POST or None, project=access.project)
    context: dict[str, object] = {"access": access, "form": form, "endpoints": Endpoint.objects.exists()}
    if request.method == "POST" and form.is_valid():
        if "estimate" in request.POST:
            context |= {
                "estimate": estimate(form.wanted(), **form.sizes()),
                "endpoint": form.cleaned_data["endpoint"],
            }
        else:
            try:
                run = services.start_run(form.wanted(), person=request.user, **form.settings())
            except services.RunRefused as refused:
                form.add_error(None, str(refused))
            else:
                audit(person=request.user, verb="run.start", subject=run, approach=run.approach)
                return redirect("runs:run", slug, run.pk)
    return render(request, "runs/start.html", context, status=422 if form.errors else 200)


@login_required
@require_GET
def run(request: AuthenticatedRequest, slug: str, run_id: int) -> HttpResponse:
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    found = _run_in(access, run_id)
    template = "runs/_progress.html" if request.htmx else "runs/run.html"  # type: ignore[attr-defined]  # its middleware's
    counted = refusals(found)
    context = {
        "access": access,
        "run": found,
        "progress": run_progress(found),
        "checks": check_counts(found, counted),
        "refusals": other_refusals(counted),
        "refused": sum(counted.values()),
        "said": said_in_run(found),
        "batches": batch_progress(found),
        "job": latest_job(JobKind.PREPARE_RUN, found.pk) if found.prepared_at is None else None,
    }
    return render(request, template, context)


@login_required
@require_GET
def attempts(request: AuthenticatedRequest, slug: str, run_id: int) -> HttpResponse:
    """The newest refused attempts, word for word where this person is not blind to the task."""
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    found = _run_in(access, run_id)
    refused = list(refused_attempts(found)[:ATTEMPTS_SHOWN])
    shown = tasks_shown_to(access, [attempt.run_task.task_id for attempt in refused])
    context = {"access": access, "run": found, "attempts": refused, "shown": shown, "limit": ATTEMPTS_SHOWN}
    return render(request, "runs/attempts.html", context)


@login_required
@require_POST
def change(request: AuthenticatedRequest, slug: str, run_id: int, verb: str) -> HttpResponse:
    """Pause, resume or cancel; a run that has moved on meanwhile is left as it is."""
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    changes: dict[str, Callable[[Run], bool]] = {
        "pause": services.pause,
        "resume": services.resume,
        "cancel": services.cancel,
    }
    found = _run_in(access, run_id)
    if verb not in changes:
        raise Http404
    if changes[verb](found):
        audit(person=request.user, verb=f"run.{verb}", subject=found)
    else:
        messages.warning(request, _("The run had moved on already; nothing was changed."))
    return redirect("runs:run", slug, run_id)


def _require_endpoints(request: AuthenticatedRequest) -> None:
    if not may_use_endpoints(request.user):
        raise PermissionDenied(_("Endpoints are for those who run models in some project."))


def _tested(test: EndpointTest) -> dict[str, object]:
    said = {name: value for name, value in test.report.items() if name != "features"}
    probes = [(Feature(name).label, probe) for name, probe in test.report.get("features", {}).items()]
    return {"test": test, "said": said, "probes": probes, "job": latest_job(JobKind.TEST_ENDPOINT, test.pk)}


def _run_in(access: Access, run_id: int) -> Run:
    found = access.project.runs.select_related("endpoint", "person").filter(pk=run_id).first()
    if found is None:
        raise Http404
    return found
