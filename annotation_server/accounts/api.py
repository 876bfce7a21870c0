"""Who is asking: a bearer token, or the session of a signed-in page (then with its CSRF token)."""

from __future__ import annotations

from django.http import HttpRequest
from ninja.security import HttpBearer, SessionAuth

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import person_with_token


class TokenAuth(HttpBearer):
    """``Authorization: Bearer TOKEN``. From here on the request is the token's owner's."""

    def authenticate(self, request: HttpRequest, token: str) -> Person | None:
        person = person_with_token(token)
        if person is not None:
            request.user = person
        return person


class PageAuth(SessionAuth):
    """A signed-in page. Asked for CSRF only where there is a session: who sent nothing is unauthorised, not forged."""

    def __call__(self, request: HttpRequest) -> Person | None:
        if not request.user.is_authenticated:
            return None
        person: Person | None = super().__call__(request)
        return person


AUTHENTICATION = [TokenAuth(), PageAuth()]
