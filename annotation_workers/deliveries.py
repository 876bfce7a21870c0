"""Notices answers that were delivered before: a proxy that sends one twice leaves the copy lying in a connection, where
the next request on it takes it for its own.

Every completion has an id and a time of its own, so a body that came before, word for word, is a copy. Some small
servers give all completions one id: they are told apart by never having given two. Not here: what to do about it
(model_client.py).
"""

from __future__ import annotations

import hashlib
import json


class Deliveries:
    """What one client was given so far, as hashes."""

    def __init__(self) -> None:
        self._bodies: set[bytes] = set()
        self._ids: set[str] = set()
        self._doubted = False

    @property
    def is_sure(self) -> bool:
        """Whether the server's completions have ids of their own."""
        return len(self._ids) > 1

    def came_before(self, body: str) -> bool:
        """Note a response; whether it is a copy of an earlier one."""
        completion_id = _id_of(body)
        if not completion_id:
            return False  # nothing in it would differ between two alike answers
        digest = hashlib.blake2b(body.encode(), digest_size=16).digest()
        copy = digest in self._bodies
        self._bodies.add(digest)
        if not self.is_sure:
            self._ids.add(completion_id)
        if copy and not self.is_sure:
            # Perhaps a server whose completions all have one id: doubted once, and then believed.
            copy, self._doubted = not self._doubted, True
        return copy


def _id_of(body: str) -> str:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    found = data.get("id") if isinstance(data, dict) else None
    return found if isinstance(found, str) else ""
