"""People and tokens from the command line: what an operator does before anybody can sign in."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from annotation_server.accounts.models import AuditEvent, Person
from annotation_server.accounts.services import person_with_token
from annotation_server.projects.models import Membership
from tests.server.factories import make_person, make_project

pytestmark = pytest.mark.django_db


def said(*command: str) -> str:
    out = io.StringIO()
    call_command(*command, stdout=out)
    return out.getvalue().strip()


def test_it_works() -> None:
    project = make_project(slug="bottles")
    assert said("create_person", "ann", "--project", "bottles", "--role", "annotator") == "ann: annotator of bottles"
    ann = Person.objects.get()
    assert Membership.objects.get(person=ann).project == project
    assert not ann.has_usable_password()
    assert person_with_token(said("create_token", "ann", "a script")) == ann
    assert AuditEvent.objects.filter(verb="person.create", object_id=ann.pk).exists()


def test_an_administrator_signs_in_with_the_password_that_was_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long secret\n"))
    said("create_person", "root", "--administrator", "--password-stdin")
    root = Person.objects.get()
    assert root.is_superuser
    assert root.check_password("a long secret")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["create_person", "ann"], "there is a person 'ann' already"),
        (["create_person", "bob", "--role", "annotator"], "--project and --role go together"),
        (["create_person", "bob", "--project", "none", "--role", "annotator"], "there is no project 'none'"),
        (["create_token", "bob", "a script"], "there is no person 'bob': make one with create_person"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nobody(command: list[str], line: str) -> None:
    make_person("ann")
    with pytest.raises(CommandError) as refused:
        said(*command)
    assert str(refused.value) == line
    assert Person.objects.count() == 1
