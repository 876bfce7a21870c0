"""Writing about people: API tokens and the audit log.

Not here: roles in a project (projects/services.py), creating people (Django's admin, for administrators).
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.utils import timezone

from annotation_server.accounts.models import ApiToken, AuditEvent, Person
from annotation_server.prepared import PreparedQuery

TOKEN_PREFIX = "winnow_"  # noqa: S105 - what tokens start with, so that scanners recognise a leaked one
LAST_USED_PRECISION = timedelta(minutes=1)


class TokenNameTaken(ValueError):
    """The person already has a token of that name."""


def audit(*, person: Person | None, verb: str, subject: models.Model, **detail: object) -> None:
    """Note who did what to which object. `detail` holds JSON values: what a later reader needs, never a secret."""
    AuditEvent.objects.create(
        person=person,
        verb=verb,
        object_type=subject._meta.label_lower,
        object_id=subject.pk,
        detail=detail,
    )


def create_token(*, person: Person, name: str) -> tuple[ApiToken, str]:
    """A new token and its secret, which is nowhere kept. Raises TokenNameTaken."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    try:
        with transaction.atomic():
            token = ApiToken.objects.create(person=person, name=name, token_sha256=_digest(secret))
            audit(person=person, verb="token.create", subject=token, name=name)
    except IntegrityError:
        raise TokenNameTaken(f"You already have a token named {name!r}.") from None
    return token, secret


def revoke_token(*, person: Person, token_id: int) -> bool:
    """Delete one of the person's tokens; False when it is not theirs, or already gone."""
    token = ApiToken.objects.filter(id=token_id, person=person).first()
    if token is None:
        return False
    with transaction.atomic():
        audit(person=person, verb="token.revoke", subject=token, name=token.name)
        token.delete()
    return True


def person_with_token(secret: str) -> Person | None:
    """Whose token this is, if anybody's who may still sign in."""
    token = _token_of_somebody_active.first(digest=_digest(secret))
    if token is None:
        return None
    now = timezone.now()
    # Written once a minute at most: a client asks often, and each write would wait for the others on SQLite.
    if token.last_used_at is None or token.last_used_at < now - LAST_USED_PRECISION:
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - LAST_USED_PRECISION)
        ApiToken.objects.filter(stale, id=token.pk).update(last_used_at=now)
    return token.person


_token_of_somebody_active = PreparedQuery(
    lambda p: ApiToken.objects.select_related("person").filter(token_sha256=p("digest"), person__is_active=True)
)


def _digest(secret: str) -> str:
    # Plain sha256 is right here, unlike for passwords: the secret has 256 random bits, so there is nothing to guess.
    return hashlib.sha256(secret.encode()).hexdigest()
