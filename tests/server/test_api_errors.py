"""Every error of the API has one shape, whatever went wrong and whoever noticed."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from annotation_server.accounts.services import create_token
from annotation_server.api import api
from annotation_server.projects.models import Membership, Project
from tests.server.factories import make_member, make_project, make_sample

pytestmark = pytest.mark.django_db


def operations() -> list[tuple[str, str]]:
    """Every method and address of the API, with places for a project that is there and objects that are not."""
    found = []
    for address, methods in api.get_openapi_schema()["paths"].items():
        here = address.replace("{slug}", "bottles").replace("{name}", "none").replace("{sha256}", "0" * 64)
        while "{" in here:
            here = here[: here.index("{")] + "987654" + here[here.index("}") + 1 :]
        found += [(method.upper(), here) for method in methods]
    return found


def error_of(response: Any) -> dict[str, str]:
    said = response.json()
    assert set(said) == {"error"}, said
    error: dict[str, str] = said["error"]
    assert set(error) in ({"code", "message"}, {"code", "message", "field"}), error
    assert all(error.values()), error
    return error


@pytest.fixture
def project() -> Project:
    return make_project(slug="bottles")


@pytest.fixture
def headers(project: Project) -> dict[str, str]:
    """A manager's."""
    _, secret = create_token(person=make_member(project, Membership.Role.MANAGER), name="test")
    return {"Authorization": f"Bearer {secret}"}


def test_without_a_token_every_operation_is_unauthorised(client: Client, project: Project) -> None:
    assert len(operations()) > 30
    for method, address in operations():
        response = client.generic(method, address, "{}", "application/json")
        assert response.status_code == 401, address
        assert error_of(response)["code"] == "unauthorised"
        assert response["WWW-Authenticate"] == "Bearer"


def test_a_stranger_meets_errors_of_one_shape_everywhere(client: Client, project: Project) -> None:
    _, secret = create_token(person=make_member(make_project()), name="test")
    for method, address in operations():
        if address in ("/api/v1/me", "/api/v1/me/preferences", "/api/v1/projects"):
            continue
        response = client.generic(
            method, address, "{}", "application/json", headers={"Authorization": f"Bearer {secret}"}
        )
        if response.status_code != 200:
            assert response.status_code in (403, 404, 422), (method, address)
            error_of(response)
        else:
            pytest.fail(f"{method} {address} let a stranger in")


def test_what_is_not_there_and_what_cannot_be_read_have_the_shape(
    client: Client, project: Project, headers: dict[str, str]
) -> None:
    for method, address in operations():
        for body in ("{}", "[1]", "not json"):
            response = client.generic(method, address, body, "application/json", headers=headers)
            if response.status_code >= 400:
                error_of(response)
                assert response.status_code in (400, 404, 409, 422), (method, address, body)


@pytest.mark.parametrize(
    ("method", "address", "status", "code"),
    [
        ("GET", "/api/v1/nothing-here", 404, "not_found"),
        ("GET", "/api/", 404, "not_found"),
        ("DELETE", "/api/v1/me", 405, "method_not_allowed"),
        ("GET", "/api/v1/projects/bottles/tasks?state=odd", 422, "invalid"),
        ("GET", "/api/v1/projects/bottles/tasks/many", 422, "invalid"),
    ],
)
def test_what_django_answers_by_itself_has_the_shape_too(
    client: Client, headers: dict[str, str], method: str, address: str, status: int, code: str
) -> None:
    response = client.generic(method, address, headers=headers)
    assert response.status_code == status
    assert error_of(response)["code"] == code


def test_a_crash_has_the_shape_and_says_nothing_of_its_inside(
    project: Project, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(person: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("annotation_server.projects.api.projects_of", crash)
    response = Client(raise_request_exception=False).get("/api/v1/projects", headers=headers)
    assert response.status_code == 500
    assert "secret detail" not in response.content.decode()
    assert error_of(response)["code"] == "internal_server_error"


def test_a_page_session_needs_its_csrf_token(project: Project) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_member(project))
    response = client.post("/api/v1/projects/bottles/claims")
    assert response.status_code == 403
    assert error_of(response)["message"] == "CSRF check Failed"


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"idempotency_key": "k"}, "answer"),
        ({"answer": ["Z"], "idempotency_key": "k"}, "answer"),
        ({"answer": "A", "idempotency_key": "k"}, "answer"),
        ({"answer": ["A"], "idempotency_key": ""}, "idempotency_key"),
        ({"answer": ["A"], "idempotency_key": "k", "seconds_spent": -1}, "seconds_spent"),
    ],
)
def test_a_refused_annotation_names_the_field(
    client: Client, project: Project, headers: dict[str, str], sent: dict[str, object], field: str
) -> None:
    _, tasks = make_sample(project)
    address = f"/api/v1/projects/bottles/tasks/{tasks[0].pk}/annotations"
    response = client.post(address, sent, "application/json", headers=headers)
    assert response.status_code == 422
    assert error_of(response)["field"].startswith(field)
    assert not tasks[0].annotations.exists()
