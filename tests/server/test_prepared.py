"""Prepared queries give what their querysets give, however often and with whatever values they are asked."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from annotation_server.annotations.models import Annotation
from annotation_server.prepared import Params, PreparedInsert, PreparedQuery, PreparedUpdate
from annotation_server.runs.models import Endpoint, Pace
from annotation_server.runs.services import create_endpoint
from annotation_server.tasks.models import Slot, Task
from annotation_server.tasks.services import claim_next
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db


def test_rows_are_models_with_what_select_related_names() -> None:
    project = make_project()
    _, tasks = make_sample(project)
    make_sample(project)
    of_sample = PreparedQuery(
        lambda p: Task.objects.filter(sample=p("sample")).select_related("sample__original").order_by("pk")
    )
    for _ in range(2):
        found = of_sample(sample=tasks[0].sample_id)
        assert found == tasks
        with CaptureQueriesContext(connection) as asked:
            assert [task.sample.original for task in found] == [tasks[0].sample.original] * len(tasks)
            assert found[0].created_at == tasks[0].created_at
        assert not asked.captured_queries


def test_values_of_every_kind_are_bound_anew() -> None:
    project = make_project()
    make_sample(project)
    person = make_member(project)
    claim = claim_next(project, person)
    assert claim is not None
    held = PreparedQuery(
        lambda p: Slot.objects.filter(
            lease_token=p("token"), lease_expires_at__gt=p("now"), person=p("person"), state=p("state")
        ).values_list("pk", "lease_expires_at")
    )
    values = {"token": claim.lease_token, "now": timezone.now(), "person": person.pk, "state": "claimed"}
    assert held(**values) == [(claim.slot_id, claim.expires_at)]
    for name, other in (("token", uuid.uuid4()), ("now", claim.expires_at), ("person", 0), ("state", "open")):
        assert held(**values | {name: other}) == []


def test_a_sequence_has_as_many_places_as_values() -> None:
    tasks = [make_task() for _ in range(10)]
    among = PreparedQuery(lambda p: Task.objects.filter(pk__in=p("ids")).order_by("pk").values_list("pk", flat=True))
    assert among(ids=[]) == []
    for number in (1, 2, 10, 1, 9):
        ids = [task.pk for task in tasks[:number]]
        assert among(ids=ids) == ids


def test_annotations_and_converted_fields_come_along() -> None:
    project = make_project()
    _, tasks = make_sample(project)
    annotate(tasks[0], make_member(project), "CA", marks=[{"letter": "A", "x": 0.5, "y": 0.5}])
    said = PreparedQuery(lambda p: Annotation.objects.filter(task__id__in=p("tasks")).only("answer", "marks"))
    assert [(one.answer, one.marks[0]["letter"]) for one in said(tasks=[tasks[0].pk])] == [(frozenset("AC"), "A")]

    voted = Exists(Annotation.objects.filter(task=OuterRef("pk")))
    with_vote = PreparedQuery(lambda p: Task.objects.filter(sample=p("sample")).annotate(voted=voted).order_by("pk"))
    assert [task.voted for task in with_vote(sample=tasks[0].sample_id)] == [True, False, False, False]


def test_an_update_says_how_many_rows_it_changed() -> None:
    project = make_project()
    _, tasks = make_sample(project)
    now = timezone.now()
    lend = PreparedUpdate(
        lambda p: (
            Slot.objects.filter(task=p("task"), state="open"),
            {"state": "claimed", "person": p("person"), "lease_token": p("token"), "lease_expires_at": p("until")},
        )
    )
    values = {"person": make_member(project).pk, "token": uuid.uuid4(), "until": now + timedelta(minutes=1)}
    assert lend(task=tasks[0].pk, **values) == 1
    assert lend(task=tasks[0].pk, **values) == 0
    assert lend(task=tasks[1].pk, **values) == 1
    slot = Slot.objects.get(task=tasks[1])
    assert (slot.person_id, slot.lease_token, slot.lease_expires_at) == tuple(values.values())


def test_many_updates_go_together_each_with_its_own_values() -> None:
    tasks = [make_task() for _ in range(3)]
    say = PreparedUpdate(lambda p: (Task.objects.filter(pk=p("task")), {"state": p("state")}))
    say.many([])
    say.many([{"task": tasks[0].pk, "state": "disputed"}, {"task": tasks[2].pk, "state": "resolved"}])
    assert list(Task.objects.order_by("pk").values_list("state", flat=True)) == ["disputed", "open", "resolved"]


def test_money_is_kept_to_the_last_place() -> None:
    endpoint = create_endpoint(name="e", base_url="http://127.0.0.1:9/v1", model="m")
    price = PreparedUpdate(lambda p: (Endpoint.objects.filter(pk=p("endpoint")), {"input_price": p("price")}))
    for value in (Decimal("0.000001"), Decimal("0E-8"), Decimal(123456)):
        assert price(endpoint=endpoint.pk, price=value) == 1
        assert Endpoint.objects.get().input_price == value


def test_a_value_may_be_none_in_what_is_set() -> None:
    task = make_task()
    Slot.objects.update(claimed_at=timezone.now())
    forget = PreparedUpdate(lambda p: (Slot.objects.filter(task=p("task")), {"claimed_at": p("at")}))
    assert forget(task=task.pk, at=None) == 1
    assert Slot.objects.get().claimed_at is None


def test_a_missing_value_is_named() -> None:
    with pytest.raises(TypeError, match="'project'"):
        PreparedQuery(lambda p: Task.objects.filter(project=p("project")))(task=1)


def test_the_sql_is_written_once_per_database() -> None:
    written = []

    @PreparedQuery
    def by_id(p: Params) -> QuerySet[Task]:
        written.append(1)
        return Task.objects.filter(pk=p("task"))

    for task in range(3):
        by_id(task=task)
    assert len(written) == 1


def test_a_refused_update_spoils_its_transaction_as_ever() -> None:
    task = make_task()
    forbidden = PreparedUpdate(lambda p: (Slot.objects.filter(task=p("task")), {"state": "claimed"}))
    with transaction.atomic():
        with pytest.raises(IntegrityError, match="claimed_slot_has_a_person_and_a_lease"):
            forbidden(task=task.pk)
        with pytest.raises(transaction.TransactionManagementError):
            Slot.objects.count()
        transaction.set_rollback(True)


def test_rows_are_inserted_and_those_that_are_there_stay() -> None:
    insert = PreparedInsert(Pace, "endpoint", "busy_rounds", "at_once", "slowed_at", ignore_conflicts=True)
    endpoints = [create_endpoint(name=f"e{n}", base_url="http://127.0.0.1:9/v1", model="m") for n in range(3)]
    now = timezone.now()
    insert.many([])
    for rounds in (7, 8):
        insert.many(
            [
                {"endpoint_id": endpoint.pk, "busy_rounds": rounds, "at_once": 1.5, "slowed_at": now}
                for endpoint in endpoints[: rounds - 5]
            ]
        )
    kept = Pace.objects.order_by("pk").values_list("endpoint", "busy_rounds", "at_once", "slowed_at")
    assert list(kept) == [(endpoint.pk, 7 + (endpoint is endpoints[2]), 1.5, now) for endpoint in endpoints]
    strict = PreparedInsert(Pace, "endpoint", "busy_rounds")
    with pytest.raises(IntegrityError), transaction.atomic():
        strict.many([{"endpoint_id": endpoints[0].pk, "busy_rounds": 0}])


@pytest.mark.parametrize("count", [1, 2, 3, 9, 512, 513, 700])
def test_a_set_of_any_length_is_that_set(count: int) -> None:
    """Up to a power of two the last value stands there several times."""
    tasks = [make_task() for _ in range(3)]
    among = PreparedQuery(lambda p: Task.objects.filter(pk__in=p("tasks")).values_list("pk", flat=True).order_by("pk"))
    wanted = [tasks[0].pk, *range(10_000, 10_000 + count - 1)]
    assert among(tasks=wanted) == [tasks[0].pk]
    assert among(tasks=[*range(10_000, 10_000 + count - 1), tasks[2].pk]) == [tasks[2].pk]
