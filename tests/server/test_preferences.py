"""A person's own theme, language and keys: on the page, through the API, and on every page afterwards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from annotation_server.accounts.models import Person
from annotation_server.accounts.preferences import (
    ACTION_LABELS,
    DEFAULT_KEYS,
    Preferences,
    key_mistakes,
    preferences_of,
)
from tests.server.factories import make_person

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada(client: Client) -> Person:
    person = make_person("ada")
    client.force_login(person)
    return person


def form(**fields: str) -> dict[str, str]:
    """What the page sends when nothing was changed, with changes."""
    keys = {action: "Space" if key == " " else key for action, key in DEFAULT_KEYS.items()}
    return {"theme": "auto", "language": ""} | keys | fields


def put(client: Client, **fields: Any) -> Any:
    return client.put("/api/v1/me/preferences", json.dumps(fields), content_type="application/json")


def test_it_works(client: Client, ada: Person) -> None:
    assert 'data-theme="auto"' in client.get("/").content.decode()
    assert 'href="/you"' in client.get("/").content.decode()

    saved = client.post("/you", form(theme="dark", language="zh-hans", none="x", submit="Space", flicker="Enter"))

    ada.refresh_from_db()
    assert saved["Location"] == "/you"
    assert ada.preferences == {
        "theme": "dark",
        "language": "zh-hans",
        "keys": {"none": "x", "submit": " ", "flicker": "Enter"},  # only what differs is kept
    }
    page = client.get("/").content.decode()
    assert 'data-theme="dark"' in page
    assert 'lang="zh-hans"' in page
    assert preferences_of(ada).keys["all"] == DEFAULT_KEYS["all"]


def test_the_page_shows_every_key_and_leads_to_tokens_and_password(client: Client, ada: Person) -> None:
    page = client.get("/you").content.decode()
    assert all(f'name="{action}"' in page for action in DEFAULT_KEYS)
    assert 'href="/tokens"' in page
    assert 'href="/password"' in page
    assert 'value="Space"' in page


def test_resetting_the_keys_keeps_the_rest(client: Client, ada: Person) -> None:
    client.post("/you", form(theme="light", none="x"))
    client.post("/you", {"reset": "1"})
    ada.refresh_from_db()
    assert ada.preferences == {"theme": "light"}


def test_an_empty_box_means_the_default(client: Client, ada: Person) -> None:
    client.post("/you", form(none="x"))
    client.post("/you", form(none=""))
    ada.refresh_from_db()
    assert preferences_of(ada) == Preferences()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("c", "The letters A to H belong to the candidates."),
        ("H", "The letters A to H belong to the candidates."),
        ("xy", "This is not one key."),
        ("Tab", "This is not one key."),
        ("Escape", "This is not one key."),
        ("\u200b", "This is not one key."),
        ("s", "“None of the candidates” has this key already."),
        ("S", "“None of the candidates” has this key already."),
    ],
)
def test_a_key_that_cannot_be_is_refused_on_the_page_and_by_the_api(
    client: Client, ada: Person, key: str, said: str
) -> None:
    # "None" comes before "Skip": with "s" both have the key of the latter, which is where it is said.
    page = client.post("/you", form(none=key))
    answer = put(client, keys={"none": key})

    assert page.status_code == answer.status_code == 422
    assert said.replace("“", "") in page.content.decode().replace("“", "")
    assert answer.json()["error"]["field"] == "keys"
    assert said in answer.json()["error"]["message"]
    ada.refresh_from_db()
    assert ada.preferences == {}


def test_the_defaults_themselves_are_possible() -> None:
    assert key_mistakes(DEFAULT_KEYS) == {}
    assert set(ACTION_LABELS) == set(DEFAULT_KEYS)


def test_the_api_reads_and_sets_all_of_them(client: Client, ada: Person) -> None:
    assert client.get("/api/v1/me/preferences").json() == {"theme": "auto", "language": "", "keys": DEFAULT_KEYS}

    set_to = put(client, theme="light", language="en", keys={"undo": "Backspace"})

    assert set_to.json() == {"theme": "light", "language": "en", "keys": DEFAULT_KEYS | {"undo": "Backspace"}}
    assert client.get("/api/v1/me/preferences").json() == set_to.json()
    assert put(client).json()["keys"] == DEFAULT_KEYS
    ada.refresh_from_db()
    assert ada.preferences == {}


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"theme": "pink"}, "theme"), ({"language": "tlh"}, "language"), ({"keys": {"dance": "x"}}, "keys")],
)
def test_the_api_names_what_is_wrong(client: Client, ada: Person, fields: dict[str, Any], field: str) -> None:
    answer = put(client, **fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def test_preferences_are_for_who_is_signed_in(client: Client) -> None:
    assert client.get("/you").status_code == 302
    assert client.get("/api/v1/me/preferences").status_code == 401
