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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from annotation_server.runs.models import RunTask, WordingKey
from annotation_server.runs.words import Shingle, likeness, shingles, words

KEYS = 6
_MINIMA_PER_KEY = 3
_PRIME = (1 << 61) - 1


@dataclass(frozen=True, slots=True)
class Wording:
    """The reasoning of a task, about to be accepted."""

    run_task: RunTask
    rationale: str


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Whose words a reasoning repeats, and how much of them."""

    of: RunTask
    likeness: float

    def __str__(self) -> str:
        task = self.of.task
        return f"{self.likeness:.0%} of its words are those about {task.sample.external_id}, {task.dimension}"


def claim_wordings(project_id: int, threshold: float, wordings: Sequence[Wording]) -> dict[int, NearCopy]:
    """Write the keys of these reasonings; those of them that are near-copies, by run task, whose keys are gone again.

    Among themselves, the first counts.
    """
    mine = {wording.run_task.pk: shingles(words(wording.rationale)) for wording in wordings}
    keys = {pk: keys_of(found) for pk, found in mine.items()}
    # In one order for everybody: two workers that wait for each other's keys would wait for ever.
    rows = sorted((key, place, pk) for place, (pk, own) in enumerate(keys.items()) for key in own)
    WordingKey.objects.bulk_create(
        [WordingKey(project_id=project_id, key=key, run_task_id=pk) for key, _, pk in rows], ignore_conflicts=True
    )
    wanted = {key for key, _, _ in rows}
    owned = WordingKey.objects.filter(project_id=project_id, key__in=wanted)
    owners = {row.key: row.run_task for row in owned.select_related("run_task__annotation", "run_task__task__sample")}
    copies: dict[int, NearCopy] = {}
    for wording in wordings:
        pk = wording.run_task.pk
        found = _nearest(wording, mine[pk], [owners[key] for key in keys[pk] if key in owners], mine, copies)
        if found is not None and found.likeness >= threshold:
            copies[pk] = found
    if copies:
        WordingKey.objects.filter(project_id=project_id, run_task__in=copies).delete()
    return copies


def find_near_copy(project_id: int, threshold: float, wording: Wording) -> NearCopy | None:
    """What claim_wordings would say, with nothing written: before a call is spent on a reasoning."""
    mine = shingles(words(wording.rationale))
    owned = WordingKey.objects.filter(project_id=project_id, key__in=keys_of(mine))
    owners = [row.run_task for row in owned.select_related("run_task__annotation", "run_task__task__sample")]
    found = _nearest(wording, mine, owners, {}, {})
    return found if found is not None and found.likeness >= threshold else None


def keys_of(found: Iterable[Shingle]) -> list[int]:
    """The keys of a text's runs; none for a text without words. The same on every machine, today and tomorrow."""
    numbers = [_number(" ".join(run)) for run in found]
    if not numbers:
        return []
    minima = [min((factor * number + more) % _PRIME for number in numbers) for factor, more in _FUNCTIONS]
    parts = [minima[at : at + _MINIMA_PER_KEY] for at in range(0, len(minima), _MINIMA_PER_KEY)]
    return [_number(f"{place} {part}") - (1 << 63) for place, part in enumerate(parts)]


def _nearest(
    wording: Wording,
    mine: frozenset[Shingle],
    owners: Iterable[RunTask],
    beside: Mapping[int, frozenset[Shingle]],
    copies: Mapping[int, NearCopy],
) -> NearCopy | None:
    """The owner with the most alike words; `beside` are wordings of the same moment, which have no annotation yet."""
    task_id = wording.run_task.task_id
    others = {owner.pk: owner for owner in owners if owner.task_id != task_id and owner.pk not in copies}
    compared = [
        NearCopy(owner, likeness(mine, beside.get(owner.pk) or shingles(words(_rationale(owner)))))
        for owner in others.values()
    ]
    return max(compared, key=lambda found: found.likeness, default=None)


def _rationale(owner: RunTask) -> str:
    return owner.annotation.rationale if owner.annotation is not None else ""


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


_FUNCTIONS = [
    (_number(f"factor {place}") % _PRIME, _number(f"more {place}") % _PRIME) for place in range(KEYS * _MINIMA_PER_KEY)
]
