"""Who is asking: a bearer token, or the session of a signed-in page (then with its CSRF token).

And what they prefer on their pages.
"""

from __future__ import annotations

from django.http import HttpRequest
from ninja import Field, Router, Schema
from ninja.security import HttpBearer, SessionAuth

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.models import Person
from annotation_server.accounts.preferences import Preferences, preferences_of, set_preferences
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

router = Router(tags=["you"])


class PreferencesIn(Schema):
    theme: str = "auto"
    """auto, light or dark."""
    language: str = ""
    """en or zh-hans; empty: the browser's."""
    keys: dict[str, str] = Field({})
    """Per action of the annotating page, as `KeyboardEvent.key` has it; those left out have their default."""


class PreferencesOut(Schema):
    theme: str
    language: str
    keys: dict[str, str]
    """Of every action."""


@router.get("/me/preferences", response=PreferencesOut)
def get_preferences(request: AuthenticatedRequest) -> Preferences:
    return preferences_of(request.user)


@router.put("/me/preferences", response=PreferencesOut)
def put_preferences(request: AuthenticatedRequest, payload: PreferencesIn) -> Preferences:
    """Set all of them; what is left out goes back to its default."""
    return set_preferences(request.user, theme=payload.theme, language=payload.language, keys=payload.keys)
