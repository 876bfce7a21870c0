"""Addresses under which a model's server may fetch one image at one size for an hour, without signing in.

Signed with the server's key: nobody can make one for another image or size, or after its time.
Not here: answering them (views.py); whether images go by address at all (an endpoint's setting).
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.core import signing

PATH = "signed-images"
LASTS_SECONDS = 3600
_SALT = "samples.signed_links"


@dataclass(frozen=True, slots=True)
class SignedLink:
    """What an address stands for."""

    sha256: str
    side: int
    """Pixels of its longer side at most."""


def address(link: SignedLink) -> str:
    """The whole address, under PUBLIC_URL, which has to be set."""
    if not settings.PUBLIC_URL:
        raise ValueError("PUBLIC_URL is not set: this server does not know where others reach it")
    return f"{settings.PUBLIC_URL}/{PATH}/{signing.dumps([link.sha256, link.side], salt=_SALT)}"


def read(token: str) -> SignedLink | None:
    """What the last part of an address stands for; None where it is not ours, or too old."""
    try:
        sha256, side = signing.loads(token, salt=_SALT, max_age=LASTS_SECONDS)
    except signing.BadSignature:
        return None
    return SignedLink(sha256, side)
