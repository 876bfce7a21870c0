"""Near-copies: the reasoning of one task in the words of another's, found without comparing all with all.

Every accepted reasoning of a project leaves a few keys: each a hash of three minima (MinHash) over its runs of three
words. Texts that share most runs share a key almost surely (99 in 100 at a likeness of 0.8, 92 at 0.7), others seldom.
A key belongs to the first that has it. A new reasoning writes its keys, keeps those that were free, and is compared
word for word with the owners of the others: at most KEYS of them, however many reasonings there are.

The keys are written before they are looked at, in the transaction that accepts: of two workers with one wording at one
moment, the second waits for the first and then meets its keys. Not here: what follows from a near-copy (ledger.py).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from annotation_server.prepared import PreparedInsert, PreparedQuery
from annotation_server.runs.models import RunTask, WordingKey
from annotation_server.runs.words import Shingle, likeness, shingles, words

KEYS = 6
_MINIMA_PER_KEY = 3
_NUMBERS = struct.Struct(f"<{KEYS * _MINIMA_PER_KEY}Q")
"""One run of words, hashed in as many ways as there are minima."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The reasoning of a task, about to be accepted."""

    run_task: RunTask
    rationale: str


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Whose words a reasoning repeats, and how much of them."""

    run_task_id: int
    about: str
    """Sample and dimension."""
    likeness: float

    def __str__(self) -> str:
        return f"{self.likeness:.0%} of its words are those about {self.about}"


def claim_wordings(project_id: int, threshold: float, wordings: Sequence[Wording]) -> dict[int, NearCopy]:
    """Write the keys of these reasonings; those of them that are near-copies, by run task, whose keys are gone again.

    Among themselves, the first counts.
    """
    mine = {wording.run_task.pk: shingles(words(wording.rationale)) for wording in wordings}
    keys = {pk: keys_of(found) for pk, found in mine.items()}
    # In one order for everybody: two workers that wait for each other's keys would wait for ever.
    rows = sorted((key, place, pk) for place, (pk, own) in enumerate(keys.items()) for key in own)
    _claim.many([{"project_id": project_id, "key": key, "run_task_id": pk} for key, _, pk in rows])
    owners = _owners(project_id, [key for key, _, _ in rows], mine)
    copies: dict[int, NearCopy] = {}
    for wording in wordings:
        pk = wording.run_task.pk
        others = {owners[key].run_task_id: owners[key] for key in keys[pk] if key in owners}
        found = _nearest(wording, mine[pk], [owner for owner in others.values() if owner.run_task_id not in copies])
        if found is not None and found.likeness >= threshold:
            copies[pk] = found
    if copies:
        WordingKey.objects.filter(project_id=project_id, run_task__in=copies).delete()
    return copies


def find_near_copy(project_id: int, threshold: float, wording: Wording) -> NearCopy | None:
    """What claim_wordings would say, with nothing written: before a call is spent on a reasoning."""
    mine = shingles(words(wording.rationale))
    owners = {owner.run_task_id: owner for owner in _owners(project_id, keys_of(mine), {}).values()}
    found = _nearest(wording, mine, owners.values())
    return found if found is not None and found.likeness >= threshold else None


def keys_of(found: Iterable[Shingle]) -> list[int]:
    """The keys of a text's runs; none for a text without words. The same on every machine, today and tomorrow."""
    numbers = [_NUMBERS.unpack(hashlib.shake_128(" ".join(run).encode()).digest(_NUMBERS.size)) for run in found]
    if not numbers:
        return []
    minima = [min(column) for column in zip(*numbers, strict=True)]
    parts = [minima[at : at + _MINIMA_PER_KEY] for at in range(0, len(minima), _MINIMA_PER_KEY)]
    return [_number(f"{place} {part}") - (1 << 63) for place, part in enumerate(parts)]


@dataclass(frozen=True, slots=True)
class _Owner:
    """The first reasoning that has a key."""

    run_task_id: int
    task_id: int
    about: str
    shingles: frozenset[Shingle]


def _owners(project_id: int, keys: Sequence[int], beside: Mapping[int, frozenset[Shingle]]) -> dict[int, _Owner]:
    """By key. `beside` are the words of run tasks of the same moment, which have no annotation yet."""
    owners: dict[int, _Owner] = {}
    by_key: dict[int, _Owner] = {}
    for key, pk, task_id, external_id, dimension, rationale in _owned(project=project_id, keys=sorted(set(keys))):
        if pk not in owners:
            said = beside.get(pk)
            of = shingles(words(rationale or "")) if said is None else said
            owners[pk] = _Owner(pk, task_id, f"{external_id}, {dimension}", of)
        by_key[key] = owners[pk]
    return by_key


_claim = PreparedInsert(WordingKey, "project", "key", "run_task", ignore_conflicts=True)
_owned = PreparedQuery(
    lambda p: WordingKey.objects.filter(project_id=p("project"), key__in=p("keys")).values_list(
        "key",
        "run_task_id",
        "run_task__task_id",
        "run_task__task__sample__external_id",
        "run_task__task__dimension",
        "run_task__annotation__rationale",
    )
)


def _nearest(wording: Wording, mine: frozenset[Shingle], owners: Iterable[_Owner]) -> NearCopy | None:
    """The owner with the most alike words, of another task."""
    others = [owner for owner in owners if owner.task_id != wording.run_task.task_id]
    if not others:
        return None
    nearest = max(others, key=lambda owner: likeness(mine, owner.shingles))
    return NearCopy(nearest.run_task_id, nearest.about, likeness(mine, nearest.shingles))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
