"""Who may open what: one table of roles, the same door for every page, nothing without a sign-in."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from annotation_server.projects.access import CAPABILITIES, Capability, access_to
from annotation_server.projects.models import Membership
from tests.server.factories import make_member, make_person, make_project, make_sample

pytestmark = pytest.mark.django_db

Role = Membership.Role

PAGES = {
    "/projects/{slug}/": {Role.MANAGER, Role.REVIEWER, Role.ANNOTATOR, Role.ML_ENGINEER},
    "/projects/{slug}/guidelines": {Role.MANAGER, Role.REVIEWER, Role.ANNOTATOR, Role.ML_ENGINEER},
    "/projects/{slug}/guidelines/physical_shadow": {Role.MANAGER, Role.REVIEWER, Role.ANNOTATOR, Role.ML_ENGINEER},
    "/projects/{slug}/guidelines/physical_shadow/edit": {Role.MANAGER},
    "/projects/{slug}/tasks": {Role.MANAGER, Role.REVIEWER, Role.ANNOTATOR, Role.ML_ENGINEER},
    "/projects/{slug}/annotate": {Role.MANAGER, Role.REVIEWER, Role.ANNOTATOR},
    "/projects/{slug}/disputed": {Role.MANAGER, Role.REVIEWER},
    "/projects/{slug}/review": {Role.MANAGER, Role.REVIEWER},
    "/projects/{slug}/approaches": {Role.MANAGER, Role.REVIEWER, Role.ML_ENGINEER},
    "/projects/{slug}/imports": {Role.MANAGER},
    "/projects/{slug}/runs": {Role.MANAGER, Role.ML_ENGINEER},
    "/projects/{slug}/runs/start": {Role.MANAGER, Role.ML_ENGINEER},
    "/projects/{slug}/versions": {Role.MANAGER, Role.ML_ENGINEER},
    "/projects/{slug}/members": {Role.MANAGER},
    "/projects/{slug}/settings": {Role.MANAGER},
    "/endpoints": {Role.MANAGER, Role.ML_ENGINEER},
    "/models": {Role.MANAGER, Role.ML_ENGINEER},
}
OPEN_TO_ALL = {"healthz", "readyz", "metrics", "sign-in", "sign-out", "signed-images/x"}


@pytest.mark.parametrize("role", list(Role))
def test_each_role_opens_its_pages_and_no_others(client: Client, role: Membership.Role) -> None:
    project = make_project()
    make_sample(project)
    client.force_login(make_member(project, role))
    for page, roles in PAGES.items():
        expected = 200 if role in roles else 403
        assert client.get(page.format(slug=project.slug)).status_code == expected, page


def test_a_stranger_learns_nothing_of_a_project(client: Client) -> None:
    project = make_project()
    client.force_login(make_member(make_project(), Role.MANAGER))
    for page in PAGES:
        if "{slug}" in page:
            assert client.get(page.format(slug=project.slug)).status_code == 404, page
            assert client.get(page.format(slug="no-such")).status_code == 404, page


def test_an_administrator_needs_no_role(client: Client) -> None:
    project = make_project()
    client.force_login(make_person(is_superuser=True))
    for page in PAGES:
        assert client.get(page.format(slug=project.slug)).status_code == 200, page


def test_every_address_but_the_listed_wants_a_sign_in(client: Client) -> None:
    """Walks the addresses themselves, so that a new page without its decorator fails here."""
    left = []
    for address in addresses(get_resolver().url_patterns):
        response = client.get(f"/{address}")
        to_sign_in = response.status_code == 302 and "/sign-in" in response["Location"]
        to_admin = response.status_code in (301, 302) and address.startswith("admin/")
        wrong_method = response.status_code == 405 and client.post(f"/{address}").status_code in (302, 401, 403)
        if not (to_sign_in or to_admin or wrong_method or response.status_code == 401):
            left.append(address)
    # The catalogue of the API and the admin's own script catalogue hold nothing of anybody.
    assert set(left) - {"admin/login/", "admin/jsi18n/", "api/v1/openapi.json", "api/v1/"} <= OPEN_TO_ALL


def addresses(patterns: list[URLPattern | URLResolver], root: str = "") -> list[str]:
    """Every address with sample values in its places."""
    found = []
    for pattern in patterns:
        here = root + str(pattern.pattern).lstrip("^").removesuffix("$").removesuffix("\\Z")
        if isinstance(pattern, URLResolver):
            found += addresses(pattern.url_patterns, here)
        elif "(?P" not in here:
            for place, value in (("<slug:", "demo"), ("<int:", "1"), ("<str:", "x"), ("<path:", "1"), ("<", "x")):
                while place in here:
                    start = here.index(place)
                    here = here[:start] + value + here[here.index(">", start) + 1 :]
            found.append(here)
    return found


def test_the_table_names_every_role_and_only_managers_have_everything() -> None:
    assert set(CAPABILITIES) == set(Role)
    assert CAPABILITIES[Role.MANAGER] == set(Capability)
    assert all(len(CAPABILITIES[role]) < len(Capability) for role in Role if role != Role.MANAGER)


def test_access_says_what_templates_ask() -> None:
    project = make_project()
    access = access_to(make_member(project, Role.REVIEWER), project.slug)
    assert access.may["review"] is True
    assert access.may["manage"] is False
