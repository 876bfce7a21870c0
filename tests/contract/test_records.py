"""Records: written and read back the same, every field checked, one spelling per value, one polarity per export."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.made import JSON, make_record, records
from trainer.contract.dimensions import Polarity
from trainer.contract.records import Record, RecordRefused, canonical_json, record_from_json, same_polarity


@given(records())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_is_read_back(record: Record) -> None:
    line = canonical_json(record.to_json())

    assert record_from_json(json.loads(line)) == record
    assert canonical_json(record_from_json(json.loads(line)).to_json()) == line


def test_unknown_fields_are_ignored() -> None:
    assert record_from_json(make_record().to_json() | {"later": 1}) == make_record()


@given(st.dictionaries(st.sampled_from(list(make_record().to_json())), JSON, max_size=3))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_row_is_read_or_refused_and_never_crashes(changes: dict[str, Any]) -> None:
    with suppress(RecordRefused):
        assert isinstance(record_from_json(make_record().to_json() | changes), Record)


IMAGE = make_record().original.to_json()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": 7}, "field 'id': expected str, found int"),
        ({"split": "dev"}, "field 'split': expected one of train, validation, test, found 'dev'"),
        ({"dimension": None}, "field 'dimension': expected str, found null"),
        ({"polarity": "good"}, "field 'polarity': expected one of acceptable, flawed"),
        ({"candidates": []}, "field 'candidates': expected 1 to 8 candidates, found 0"),
        ({"candidates": [{"letter": "B", **IMAGE}]}, "field 'candidates': expected letter 'A' in place 1"),
        ({"answer": ["E"]}, "field 'answer': 'E' is not a candidate letter"),
        ({"answer": "A"}, "field 'answer': expected list, found str"),
        ({"annotators": True}, "field 'annotators': expected int, found bool"),
        ({"agreement": "1"}, "field 'agreement': expected a number or null, found str"),
        ({"approach": "oral"}, "field 'approach': expected one of manual, automated, answer_driven"),
        (
            {"original": IMAGE | {"path": "../../etc/passwd"}},
            "field 'original.path': expected a path inside the export",
        ),
        ({"original": IMAGE | {"path": "/etc/passwd"}}, "field 'original.path': expected a path inside the export"),
        ({"original": IMAGE | {"width": None}}, "field 'original.width': expected int, found null"),
        ({"meta": None}, "field 'meta': expected dict, found null"),
    ],
)
def test_it_names_the_field_and_what_was_expected(change: dict[str, Any], why: str) -> None:
    with pytest.raises(RecordRefused) as told:
        record_from_json(make_record().to_json() | change)

    assert str(told.value).startswith(why)


@pytest.mark.parametrize("name", [name for name in make_record().to_json() if name not in ("agreement", "approach")])
def test_a_missing_field_is_named(name: str) -> None:
    row = make_record().to_json()
    del row[name]

    with pytest.raises(RecordRefused, match=f"field '{name}' is missing"):
        record_from_json(row)


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(RecordRefused, match="expected a JSON object, found list"):
        record_from_json([])


def test_a_value_has_one_spelling() -> None:
    assert canonical_json({"b": [1, "ä"], "a": None}) == '{"a":null,"b":[1,"ä"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


@given(records())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_record_in_the_other_polarity_is_the_same_judgement(record: Record) -> None:
    for polarity in Polarity:
        assert record.in_polarity(polarity).in_polarity(record.polarity) == record
    (other,) = set(Polarity) - {record.polarity}
    assert not record.in_polarity(other).answer & record.answer


def test_mixed_polarity_is_refused_or_complemented() -> None:
    acceptable, flawed = make_record(), make_record(id="cup", polarity=Polarity.FLAWED, answer=frozenset("B"))

    with pytest.raises(RecordRefused, match="mixed polarity"):
        same_polarity([acceptable, flawed], None)
    complemented = same_polarity([acceptable, flawed], Polarity.ACCEPTABLE)
    assert [record.answer for record in complemented] == [{"A", "C"}, {"A", "C", "D"}]
    assert same_polarity([flawed, flawed], None) == [flawed, flawed]
