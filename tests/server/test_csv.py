"""Tables as CSV: streamed, as blind as their page, and no formula for a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest
from django.test import Client

from annotation_server.annotations.csv_files import csv_response, safe_cell
from annotation_server.projects.models import Membership
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


def test_other_cells_stay_what_they_are() -> None:
    assert [safe_cell(value) for value in ("a=b", "", None, -3, 0.25, -0.125, True)] == [
        "a=b", "", "", "-3", "0.25", "-0.125", "True",
    ]  # fmt: skip


def test_rows_are_sent_as_they_come() -> None:
    sent = []

    def rows() -> object:
        for number in range(3):
            sent.append(number)
            yield (number, 'a,"b"')

    response = csv_response("x.csv", ("number", "text"), rows())  # type: ignore[arg-type]
    lines = iter(response)
    assert next(lines) == b"number,text\r\n"
    assert sent == []
    assert next(lines) == b'0,"a,""b"""\r\n'
    assert sent == [0]


def read(client: Client, address: str) -> list[dict[str, str]]:
    response = client.get(address)
    assert response.streaming
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert response["Content-Disposition"].startswith("attachment")
    return list(csv.DictReader(io.StringIO(response.getvalue().decode())))


def test_the_task_table_is_what_the_browser_shows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotation_server.annotations.views.browse._CSV_AT_ONCE", 2)
    project = make_project(dimensions=["physical_shadow"])
    tasks = [make_sample(project, external_id=f"{first}{n}")[1][0] for n, first in enumerate(["=cmd", "a", "b", "a"])]
    annotator, manager = make_member(project), make_member(project, Membership.Role.MANAGER)
    annotate(tasks[1], annotator, "AC")
    client.force_login(manager)
    address = f"/projects/{project.slug}/tasks.csv"

    rows = read(client, address)
    assert [row["sample"] for row in rows] == ["'=cmd0", "a1", "b2", "a3"]
    assert [row["state"] for row in rows] == ["open", "resolved", "open", "open"]
    assert (rows[1]["answer"], rows[1]["answered by"], rows[1]["agreement"]) == ("AC", "agreement", "1")
    assert [row["sample"] for row in read(client, f"{address}?sample=a")] == ["a1", "a3"]

    client.force_login(annotator)
    (row,) = read(client, address)
    assert (row["sample"], row["answer"]) == ("a1", "")


def test_people_and_agreement(client: Client) -> None:
    project = make_project(dimensions=["physical_shadow"], overlap=2)
    people = [make_member(project, username=name) for name in ("-ada", "grace")]
    for answers in (("A", "A"), ("B", "A")):
        _, (task,) = make_sample(project)
        for person, answer in zip(people, answers, strict=True):
            annotate(task, person, answer)
    client.force_login(make_member(project, Membership.Role.MANAGER, "manager"))

    rows = {row["person"]: row for row in read(client, f"/projects/{project.slug}/people.csv")}
    assert (rows["'-ada"]["answered"], rows["'-ada"]["same as others"]) == ("2", "0.5")
    agreement = read(client, f"/projects/{project.slug}/agreement.csv")
    assert [row["coefficient"] for row in agreement] == [
        "percent", "percent_candidate", "fleiss", "alpha", "alpha_masi", "cohen",
    ]  # fmt: skip
    assert agreement[0]["value"] == "0.5"
    assert (agreement[-1]["first"], agreement[-1]["second"]) == ("'-ada", "grace")
