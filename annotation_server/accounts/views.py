"""Signing in and out, a person's own preferences and API tokens.

Not here: managing people (Django's admin), members of a project (projects/views.py).
"""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import translation
from django.utils.translation import get_language_from_request
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from annotation_server.accounts.forms import PreferencesForm, TokenForm
from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.preferences import preferences_of, set_preferences
from annotation_server.accounts.services import TokenNameTaken, create_token, revoke_token


class SignIn(LoginView):
    """Django's, except that a fragment asked for after the session ended sends the whole page here."""

    template_name = "accounts/sign_in.html"
    redirect_authenticated_user = True

    def dispatch(self, request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        htmx: HtmxDetails = request.htmx  # type: ignore[attr-defined]  # set by its middleware
        if htmx:
            return HttpResponseClientRedirect(f"{request.path}?next={htmx.current_url_abs_path or '/'}")
        return super().dispatch(request, *args, **kwargs)


@login_required
@require_http_methods(["GET", "POST"])
def you(request: AuthenticatedRequest) -> HttpResponse:
    """The person's own page. With `reset` in what is sent the keys go back to the defaults."""
    stands = preferences_of(request.user)
    if request.method == "POST" and "reset" in request.POST:
        set_preferences(request.user, theme=stands.theme, language=stands.language, keys={})
        messages.success(request, _("The keys are as they were made."))
        return redirect("accounts:you")
    form = PreferencesForm(request.POST or None, stands=stands)
    if request.method == "POST" and form.is_valid():
        chosen = form.cleaned_data
        set_preferences(request.user, theme=chosen["theme"], language=chosen["language"], keys=form.keys())
        with translation.override(chosen["language"] or get_language_from_request(request)):
            messages.success(request, _("Saved."))
        return redirect("accounts:you")
    return render(request, "accounts/you.html", {"form": form}, status=422 if form.errors else 200)


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def tokens(request: AuthenticatedRequest) -> HttpResponse:
    form = TokenForm(request.POST or None)
    secret = ""
    if request.method == "POST" and form.is_valid():
        try:
            _token, secret = create_token(person=request.user, name=form.cleaned_data["name"])
        except TokenNameTaken as taken:
            form.add_error("name", str(taken))
        else:
            form = TokenForm()
    # Shown in the answer to the POST itself: a redirect would have to keep the secret somewhere in between.
    return render(
        request,
        "accounts/tokens.html",
        {"form": form, "secret": secret, "tokens": request.user.api_tokens.order_by("name")},
        status=422 if form.errors else 200,
    )


@login_required
@require_POST
def revoke(request: AuthenticatedRequest, token_id: int) -> HttpResponse:
    if not revoke_token(person=request.user, token_id=token_id):
        raise Http404
    messages.success(request, _("The token is revoked."))
    return redirect("accounts:tokens")
