"""The Content-Security-Policy of every page. Stored images answer with their own, stricter one (samples/views.py).

Not here: cookies, HSTS and the other headers, which are Django's own settings.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

# Our scripts and styles are files, so nothing inline is allowed. htmx must therefore run with `allowEval` and
# `includeIndicatorStyles` off (its meta tag in the base template).
PAGE_POLICY = (
    "default-src 'self'; "
    "img-src 'self' data: blob:; "
    "object-src 'none'; "
    "base-uri 'none'; "
    "form-action 'self'; "
    "frame-ancestors 'none'"
)


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        return response

    return middleware
