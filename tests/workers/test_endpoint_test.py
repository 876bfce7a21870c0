"""The connection test: what an endpoint really does with each feature, whatever status it answers with."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from annotation_server.runs import selectors, services
from annotation_server.runs.models import Endpoint, EndpointTest, Feature
from tests.workers.conftest import FakeEndpoint, MakeEndpoint

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]
ALL = {feature.value for feature in Feature}


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    return make_endpoint()


def result_of(endpoint: Endpoint, work: Work) -> EndpointTest:
    test = services.start_endpoint_test(endpoint)
    work()
    test.refresh_from_db()
    endpoint.refresh_from_db()
    return test


def test_it_works(endpoint: Endpoint, work: Work, settings: Any, live_server: Any) -> None:
    settings.PUBLIC_URL = live_server.url
    test = result_of(endpoint, work)
    assert (test.ok, test.report["in_grammar"]) == (True, True)
    assert endpoint.found == dict.fromkeys(ALL, True)
    assert test.report["features"]["data_uri"]["detail"] == "it named the colours of two pictures"
    assert test.report["features"]["image_url"]["detail"] == "a picture takes 980 tokens of input"


def test_what_a_test_takes_is_kept(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    first = result_of(endpoint, work)
    assert first.calls == len(fake.charges()) == 7
    assert first.input_tokens == 6 * 1000 + 20  # one of the calls is told to have no picture in it
    assert first.output_tokens == sum(charge["output_tokens"] for charge in fake.charges().values())
    assert first.cost_usd == Decimal(first.input_tokens + first.output_tokens) / 1000  # a dollar per thousand tokens
    fake.control(mode="unauthorised")
    second = result_of(endpoint, work)
    assert (second.ok, second.calls, second.cost_usd) == (False, 1, Decimal(0))
    spent = selectors.spent_on_tests(endpoint)
    assert (spent.calls, spent.cost_usd) == (first.calls + 1, first.cost_usd)


def test_features_that_are_ignored_with_a_200_are_not_there(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, settings: Any
) -> None:
    settings.PUBLIC_URL = "http://127.0.0.1:9"
    fake.control(can=[])
    test = result_of(endpoint, work)
    assert test.ok is True
    assert endpoint.found == dict.fromkeys(ALL, False)
    details = {name: probe["detail"] for name, probe in test.report["features"].items()}
    assert details == {
        "data_uri": "it answered as if there were no picture: it takes up no input",
        "image_url": "it answered as if there were no picture: it takes up no input",
        "json_schema": "it took the schema with a 200 and ignored it: 'Hello!'",
        "logprobs": "it took the question with a 200 and told none",
        "choices": "asked for two completions with a 200, it gave 1",
        "batches": f"fake ({fake.base}/v1) answered 404: Not Found",
    }


@pytest.mark.parametrize("feature", ["json_schema", "logprobs", "choices"])
def test_a_feature_that_is_refused_is_not_there_and_the_others_are(
    feature: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(can=sorted(ALL - {feature}), refuses=True)
    test = result_of(endpoint, work)
    assert test.ok is True
    assert endpoint.found == {name: name != feature for name in ALL - {"image_url"}}
    assert "answered 400: this is not supported" in test.report["features"][feature]["detail"]


def test_images_by_address_are_not_tried_where_nobody_could_fetch_them(endpoint: Endpoint, work: Work) -> None:
    test = result_of(endpoint, work)
    assert test.report["features"]["image_url"]["works"] is None
    assert "image_url" not in endpoint.found
    assert endpoint.can(Feature.IMAGE_URL) is False


def test_an_endpoint_that_is_busy_changes_nothing_that_was_known(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    result_of(endpoint, work)
    fake.control(script=["good"], mode="overloaded")
    test = result_of(endpoint, work)
    assert {probe["works"] for probe in test.report["features"].values()} == {None}
    assert endpoint.can(Feature.JSON_SCHEMA) is True


def test_what_somebody_says_stands_above_what_a_test_found(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    services.change_endpoint(endpoint, {"overrides": {"logprobs": False}})
    result_of(endpoint, work)
    assert (endpoint.found["logprobs"], endpoint.can(Feature.LOGPROBS)) == (True, False)
    services.change_endpoint(endpoint, {"overrides": {}})
    assert endpoint.can(Feature.LOGPROBS) is True


def test_an_endpoint_that_answers_nonsense_is_asked_no_more(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(mode="html")
    test = result_of(endpoint, work)
    assert (test.ok, test.report["features"], endpoint.found) == (False, {}, {})
    assert len(fake.charges()) == 1
