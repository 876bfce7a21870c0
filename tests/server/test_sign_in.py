"""Signing in, and API tokens: shown once, kept as a hash, gone when revoked."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from annotation_server.accounts.models import ApiToken, AuditEvent
from annotation_server.accounts.services import create_token, person_with_token
from tests.server.factories import make_person

pytestmark = pytest.mark.django_db


def test_it_works(client: Client) -> None:
    make_person("ada")

    refused = client.get("/")
    signed_in = client.post("/sign-in", {"username": "ada", "password": "secret", "next": "/tokens"})

    assert (refused.status_code, refused["Location"]) == (302, "/sign-in?next=/")
    assert (signed_in.status_code, signed_in["Location"]) == (302, "/tokens")
    assert client.get("/").status_code == 200


def test_a_wrong_password_says_so(client: Client) -> None:
    make_person("ada")
    page = client.post("/sign-in", {"username": "ada", "password": "wrong"})
    assert "Please enter a correct username and password" in page.content.decode()


def test_signing_in_never_leads_to_another_site(client: Client) -> None:
    make_person("ada")
    response = client.post("/sign-in", {"username": "ada", "password": "secret", "next": "https://elsewhere.example/"})
    assert response["Location"] == "/"


def test_signing_out_is_a_post(client: Client) -> None:
    client.force_login(make_person())
    assert client.get("/sign-out").status_code == 405
    client.post("/sign-out")
    assert client.get("/").status_code == 302


def test_a_fragment_asked_for_after_the_session_ended_sends_the_page_to_sign_in(client: Client) -> None:
    response = client.get("/sign-in", headers={"HX-Request": "true", "HX-Current-URL": "http://testserver/jobs"})
    assert response["HX-Redirect"] == "/sign-in?next=/jobs"


def test_a_token_is_shown_once_and_kept_as_a_hash(client: Client) -> None:
    client.force_login(make_person("ada"))

    shown = client.post("/tokens", {"name": "script"}).content.decode()
    again = client.get("/tokens").content.decode()

    (secret,) = set(re.findall(r"winnow_[\w-]{43}", shown))
    assert secret not in again
    token = ApiToken.objects.get()
    assert token.token_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert not AuditEvent.objects.filter(detail__icontains=secret).exists()


def test_a_second_token_of_the_same_name_is_refused_on_the_page(client: Client) -> None:
    client.force_login(make_person())
    client.post("/tokens", {"name": "script"})
    page = client.post("/tokens", {"name": "script"})
    assert page.status_code == 422
    assert "You already have a token named" in page.content.decode()


def test_a_revoked_token_opens_nothing(client: Client) -> None:
    ada = make_person()
    token, secret = create_token(person=ada, name="script")
    client.force_login(ada)

    assert person_with_token(secret) == ada
    client.post(f"/tokens/{token.pk}/revoke")

    assert person_with_token(secret) is None
    assert list(AuditEvent.objects.values_list("verb", flat=True)) == ["token.create", "token.revoke"]


def test_nobody_revokes_somebody_elses_token(client: Client) -> None:
    token, _ = create_token(person=make_person(), name="script")
    client.force_login(make_person())
    assert client.post(f"/tokens/{token.pk}/revoke").status_code == 404
    assert ApiToken.objects.exists()


def test_the_token_of_somebody_who_may_not_sign_in_any_more_opens_nothing() -> None:
    gone = make_person()
    _, secret = create_token(person=gone, name="script")
    gone.is_active = False
    gone.save()
    assert person_with_token(secret) is None


def test_last_used_is_written_once_a_minute_at_most() -> None:
    token, secret = create_token(person=make_person(), name="script")
    person_with_token(secret)
    token.refresh_from_db()
    first = token.last_used_at
    person_with_token(secret)
    token.refresh_from_db()
    assert first is not None
    assert token.last_used_at == first

    ApiToken.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    person_with_token(secret)
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert token.last_used_at > first


def test_only_administrators_see_the_admin_and_the_jobs(client: Client) -> None:
    client.force_login(make_person(is_staff=True))
    assert client.get("/admin/").status_code == 302
    assert client.get("/jobs").status_code == 403
    client.force_login(make_person(is_superuser=True, is_staff=True))
    assert client.get("/admin/").status_code == 200
    assert client.get("/jobs").status_code == 200
