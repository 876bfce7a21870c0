"""The language a signed-in person chose, above the browser's, which Django's LocaleMiddleware has set before."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase
from django.utils import translation

from annotation_server.accounts.models import Person


def persons_language(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        if isinstance(request.user, Person) and (language := request.user.preferences.get("language")):
            translation.activate(language)
            request.LANGUAGE_CODE = translation.get_language()
        return get_response(request)

    return middleware
