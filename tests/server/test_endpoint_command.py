"""Endpoints from the command line: listed, shown, changed; what cannot be is one line."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command

from annotation_server.accounts.models import AuditEvent
from annotation_server.runs.costs import Spent
from annotation_server.runs.models import Endpoint
from annotation_server.runs.services import record_endpoint_test, start_endpoint_test

pytestmark = pytest.mark.django_db

Said = pytest.CaptureFixture[str]


@pytest.fixture
def endpoint() -> Endpoint:
    call_command(
        "add_endpoint", "gpt", "--base-url", "https://models.example/v1", "--model", "big", "--api-key-env", "BIG_KEY",
        "--input-price", "0.40", "--caveat", "Dear.",
    )  # fmt: skip
    return Endpoint.objects.get()


def test_it_works(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-secret")
    assert (endpoint.input_price, endpoint.output_price) == (Decimal("0.4"), Decimal(0))
    assert endpoint.concurrency == 8
    capsys.readouterr()

    call_command("endpoint", "list")
    line = "gpt: big at https://models.example/v1, key from BIG_KEY, $0.4 / $0 per million tokens in / out\n"
    assert capsys.readouterr().out == line

    call_command(
        "endpoint", "change", "gpt", "--output-price", "1.6", "--cached-input-price", "0.1", "--concurrency", "16",
        "--requests-per-minute", "500", "--timeout", "60", "--feature", "logprobs=yes", "--feature", "data_uri=no",
    )  # fmt: skip
    said = capsys.readouterr().out
    endpoint.refresh_from_db()
    assert (endpoint.input_price, endpoint.output_price) == (Decimal("0.4"), Decimal("1.6"))
    assert (endpoint.cached_input_price, endpoint.timeout_seconds) == (Decimal("0.1"), 60)
    assert (endpoint.concurrency, endpoint.requests_per_minute) == (16, 500)
    assert endpoint.overrides == {"logprobs": True, "data_uri": False}
    assert "16 calls at once, 500 calls a minute, any number of tokens a minute, 60 s for an answer" in said
    assert "  logprobs: yes (said by somebody)\n" in said
    assert "  choices: no\n" in said
    assert "Dear." in said
    assert "sk-secret" not in said
    event = AuditEvent.objects.get(verb="endpoint.change")
    assert event.person is None

    test = start_endpoint_test(endpoint)
    record_endpoint_test(test.pk, ok=True, report={}, spent=Spent(7, 6020, 350, Decimal("0.003")))
    call_command("endpoint", "show", "gpt")
    assert "last test: it works; all tests took $0.003000" in capsys.readouterr().out


def test_what_is_not_named_stays(endpoint: Endpoint) -> None:
    call_command("endpoint", "change", "gpt", "--cached-input-price", "0.1", "--feature", "logprobs=yes")
    call_command("endpoint", "change", "gpt", "--feature", "choices=no", "--caveat", "")
    endpoint.refresh_from_db()
    assert (endpoint.cached_input_price, endpoint.caveat) == (Decimal("0.1"), "")
    assert endpoint.overrides == {"logprobs": True, "choices": False}
    call_command("endpoint", "change", "gpt", "--cached-input-price", "input", "--feature", "logprobs=found")
    endpoint.refresh_from_db()
    assert (endpoint.cached_input_price, endpoint.overrides) == (None, {"choices": False})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "gone"), "there is no endpoint 'gone'; there are: gpt"),
        (("show",), "which endpoint? there are: gpt"),
        (("list", "gpt"), "list takes no name"),
        (("list", "--concurrency", "9"), "settings go with change"),
        (("change", "gpt"), "nothing to change"),
        (
            ("change", "gpt", "--input-price", "much"),
            "--input-price is USD per million tokens .* got 'much'",
        ),
        (("change", "gpt", "--input-price", "input"), "--input-price is USD"),
        (("change", "gpt", "--input-price", "-1"), "input_price: "),
        (("change", "gpt", "--input-price", "NaN"), "input_price: "),
        (("change", "gpt", "--output-price", "1e9"), "output_price: "),
        (("change", "gpt", "--concurrency", "0"), "concurrency: "),
        (("change", "gpt", "--tokens-per-minute", "-1"), "tokens_per_minute: "),
        (("change", "gpt", "--images-as", "url"), "PUBLIC_URL"),
        (("change", "gpt", "--feature", "flying=yes"), "--feature is one of data_uri, "),
        (("change", "gpt", "--feature", "logprobs"), "got 'logprobs'"),
        (("change", "gpt", "--api-key-env", "OTHER"), "unrecognized arguments: --api-key-env"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(
    arguments: tuple[str, ...], line: str, endpoint: Endpoint
) -> None:
    before = Endpoint.objects.values().get()
    with pytest.raises(CommandError, match=r"(?s)" + line.replace("?", r"\?")) as refused:
        call_command("endpoint", *arguments)
    assert "\n" not in str(refused.value)
    assert Endpoint.objects.values().get() == before
    assert not AuditEvent.objects.filter(verb="endpoint.change").exists()
