"""The one shape of every error of the API, and the promise that nothing under its address answers in another.

``{"error": {"code": "…", "message": "…", "field": "…"}}``; `field` only where one is at fault. Not here: which
exception becomes which error (api.py); errors on pages, which are HTML.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpRequest, HttpResponseBase, JsonResponse

API_ROOT = "/api/"


class ApiError(Exception):
    """What an operation raises to answer with an error. The code is for programs, the message one line for people."""

    def __init__(self, status: int, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field

    def response(self) -> JsonResponse:
        error = {"code": self.code, "message": self.message} | ({"field": self.field} if self.field else {})
        return JsonResponse({"error": error}, status=self.status)


def invalid(message: str, field: str = "") -> ApiError:
    """What was sent cannot be accepted as it is."""
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", message, field)


def check_form(form: forms.Form) -> None:
    """For operations that share a page's form: raise its first error."""
    for field, errors in form.errors.items():
        raise invalid(str(errors[0]), "" if field == NON_FIELD_ERRORS else field)


def api_errors_in_one_shape(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware: what Django itself answers under the API's address (unknown path, wrong method, a crash) as JSON."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        is_error = response.status_code >= HTTPStatus.BAD_REQUEST
        if not is_error or not request.path.startswith(API_ROOT) or isinstance(response, JsonResponse):
            return response
        status = HTTPStatus(response.status_code)
        message = {
            HTTPStatus.NOT_FOUND: "There is no such address in this API.",
            HTTPStatus.METHOD_NOT_ALLOWED: f"This address does not take {request.method}.",
        }.get(status, status.description or status.phrase)
        shaped = ApiError(status, status.name.lower(), message).response()
        if "Allow" in response.headers:
            shaped["Allow"] = response.headers["Allow"]
        return shaped

    return middleware
