"""Comparing approaches where people and scripts meet it: page, CSV, API, command; and who may see it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from annotation_server.accounts.services import create_token
from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import add_gold
from annotation_server.client import Client as WinnowClient
from annotation_server.projects.models import Membership, Project
from annotation_server.runs.comparison import compare
from annotation_server.templatetags.plots import cost_plot
from tests.server.compared import make_run, settle
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db

ADDRESS = "/projects/bottles/approaches"


@pytest.fixture
def project(client: Client) -> Project:
    """36 USD an hour; its manager is signed in."""
    project = make_project(slug="bottles", dimensions=["physical_shadow"], hourly_wage=Decimal(36))
    client.force_login(make_member(project, Membership.Role.MANAGER))
    return project


@pytest.fixture
def tried(project: Project) -> Project:
    """Two tasks with gold that all three worked on: people 10 s each and right, a model right once at half a cent."""
    person = make_member(project, username="ada")
    automated, explained = make_run(project), make_run(project, Approach.ANSWER_DRIVEN)
    for place in range(2):
        _, (task,) = make_sample(project)
        add_gold({task: frozenset("A")})
        vote = annotate(task, person, "A", seconds_spent=10, rationale="It touches its <b>shadow</b>.")
        settle(automated, task, "BC" if place else "A", "Fine.", calls=[("0.005", 800)])
        settle(explained, task, "A", "The edge is sharp.", given_from=vote, calls=[("0.01", 1500)])
    return project


def shown(client: Client, address: str = ADDRESS) -> str:
    """The words of the page."""
    body = client.get(address).content.decode()
    return " ".join(re.sub(r"<[^>]+>", " ", body[body.index("<main") :]).split())


def test_it_works(client: Client, tried: Project) -> None:
    page = shown(client)
    assert "Over the 2 tasks that all of them worked on." in page
    assert "An hour of work costs 36.00 USD." in page
    # Manual, automated, answer-driven.
    assert "Accepted records 2 of 2, 100% 2 of 2, 100% 2 of 2, 100%" in page
    assert "Cost per accepted record, USD 0.1000 0.0050 0.1100" in page
    assert "Same as gold 100.0 % 34.2 – 100.0 50.0 % 9.5 – 90.5 n/a 2 explain gold itself" in page
    assert "Model’s time per record, median n/a 0.8 s 1.5 s" in page
    assert "Knows drawn scenes only." in page
    # Nothing is cheaper and as right as people: 0.10 USD. The model costs 0.005 for a half.
    assert "90.0 % right costs at least 0.1000 USD per record; 100.0 % are to be expected." in page

    page = shown(client, f"{ADDRESS}?quality=50")
    assert "50.0 % right costs at least 0.0050 USD per record; 50.0 % are to be expected." in page
    body = client.get(ADDRESS).content.decode()
    assert 'class="point chosen"' in body
    assert "Automated: 0.0050 USD, 50.0 %" in body
    assert "<b>shadow" not in body


def test_plots_stay_inside_their_frame(client: Client, tried: Project) -> None:
    body = client.get(ADDRESS).content.decode()
    plots = re.findall(r'<svg class="plot cost".*?</svg>', body, re.DOTALL)
    assert len(plots) == 2  # one dimension, and the mixes
    for plot in plots:
        places = [float(x) for x in re.findall(r'\b(?:cx|x1|x2)="([^"]+)"', plot)]
        heights = [float(y) for y in re.findall(r'\b(?:cy|y1|y2)="([^"]+)"', plot)]
        assert places
        assert 0 <= min(places) <= max(places) <= 420
        assert 0 <= min(heights) <= max(heights) <= 260
        assert "style=" not in plot


def test_it_says_what_is_missing(client: Client, project: Project) -> None:
    assert "Nothing to compare yet." in shown(client)

    _, (first,) = make_sample(project)
    _, (second,) = make_sample(project)
    annotate(first, make_member(project), "A", seconds_spent=10)
    page = shown(client)
    assert "Not tried yet: Automated. Not tried yet: Answer-driven." in page
    assert "No answer can be held against gold yet." in page
    assert "No approach has both a cost and a quality here." in page
    assert "It takes a cost and a quality" in page
    assert "No wage is set" not in page

    settle(make_run(project), second, "A")
    assert "No task has been worked on by all of them." in shown(client)
    assert "No task has been worked on by all of them." not in shown(client, f"{ADDRESS}?tasks=all")
    Project.objects.update(hourly_wage=None)
    assert "No wage is set: what people’s work costs is unknown." in shown(client)


def test_no_mix_reaches_everything(client: Client, tried: Project) -> None:
    Project.objects.update(hourly_wage=None)
    assert "No mix reaches 90.0 %. The best reaches 50.0 %, at 0.0050 USD per record." in shown(client)


def test_a_large_project_shows_the_page_before_the_figures(
    client: Client, tried: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotation_server.runs.comparison_views.COUNTED_AT_ONCE", 1)
    frame = client.get(f"{ADDRESS}?quality=50").content.decode()
    assert "Counting what was done on 2 tasks" in frame
    assert 'hx-get="?quality=50"' in frame
    assert "Accepted records" not in frame
    figures = client.get(f"{ADDRESS}?quality=50", headers={"HX-Request": "true"}).content.decode()
    assert "Accepted records" in figures
    assert "<h1" not in figures


@pytest.mark.parametrize("query", ["quality=200", "quality=x", "endpoint=no-such", "tasks=some", "measure=guess"])
def test_a_mistake_in_the_address_is_said_on_the_page(client: Client, tried: Project, query: str) -> None:
    page = client.get(f"{ADDRESS}?{query}")
    assert page.status_code == 422
    assert 'role="alert"' in page.content.decode()


@pytest.mark.parametrize(
    ("role", "status"), [("manager", 200), ("reviewer", 200), ("ml_engineer", 200), ("annotator", 403)]
)
def test_it_is_for_those_who_see_answers(client: Client, tried: Project, role: str, status: int) -> None:
    client.force_login(make_member(tried, role))
    for address in (ADDRESS, f"{ADDRESS}.csv", f"/api/v1{ADDRESS}"):
        assert client.get(address).status_code == status, address
    assert ("Approaches" in client.get("/projects/bottles/").content.decode()) == (status == 200)
    client.force_login(make_member(make_project()))
    for address in (ADDRESS, f"{ADDRESS}.csv", f"/api/v1{ADDRESS}"):
        assert client.get(address).status_code == 404, address


def test_the_table_as_csv(client: Client, tried: Project) -> None:
    rows = list(csv.DictReader(io.StringIO(client.get(f"{ADDRESS}.csv").getvalue().decode())))
    assert [(row["dimension"], row["approach"]) for row in rows[:3]] == [
        ("physical_shadow", "manual"), ("physical_shadow", "automated"), ("physical_shadow", "answer_driven"),
    ]  # fmt: skip
    assert [row["dimension"] for row in rows[3:]] == ["all"] * 3
    assert (rows[1]["cost_usd"], rows[1]["gold_exact"], rows[2]["gold_exact"], rows[2]["given_gold"]) == (
        "0.005", "0.5", "", "2",
    )  # fmt: skip


def test_the_api_says_the_same(client: Client, tried: Project) -> None:
    said = client.get(f"/api/v1{ADDRESS}", {"quality": "0.5"}).json()
    assert (said["shared"], said["tasks"], said["hourly_wage"]) == (True, {"physical_shadow": 2}, "36.00")
    by_model = next(line for line in said["lines"] if line["approach"] == "automated")
    assert (by_model["cost_usd"], by_model["gold_exact"], by_model["gold_tasks"]) == (0.005, 0.5, 2)
    # Gold A, said BC: none of A, one of B, C and D left out as it should be: (0 + 1/3) / 2; and 1 for the other.
    assert by_model["gold_credit"] == pytest.approx((1 + 1 / 6) / 2)
    mix = said["mix"]
    assert (mix["reference"], mix["wanted"], mix["chosen"]["cost_usd"]) == ("gold", 0.5, 0.005)
    (choice,) = mix["chosen"]["choices"]
    assert (choice["dimension"], choice["approach"], choice["then"]) == ("physical_shadow", "automated", "")
    assert [one["cost_usd"] for one in mix["frontier"]] == [0.005, pytest.approx(0.1)]

    refused = client.get(f"/api/v1{ADDRESS}", {"endpoint": "no-such"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "endpoint")
    assert client.get(f"/api/v1{ADDRESS}", {"quality": 2}).status_code == 422


def test_a_wage_is_a_setting_that_annotators_do_not_see(client: Client, project: Project) -> None:
    page = client.get("/projects/bottles/settings").content.decode()
    assert 'name="hourly_wage" value="36.00"' in page
    made = client.post(
        "/api/v1/projects", {"slug": "cans", "name": "Cans", "hourly_wage": "12.5"}, content_type="application/json"
    )
    assert (made.status_code, Project.objects.get(slug="cans").hourly_wage) == (201, Decimal("12.50"))
    assert "wage" not in made.content.decode()
    for wrong in (-1, "1.234"):
        fields = {"slug": "x", "name": "X", "hourly_wage": wrong}
        refused = client.post("/api/v1/projects", fields, content_type="application/json")
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "hourly_wage")


def test_it_says_when_tasks_were_drawn(client: Client, tried: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "of them were drawn by chance, and all figures are of those."
    assert said not in shown(client)
    for module in ("comparison_views", "comparison_api"):
        monkeypatch.setattr(f"annotation_server.runs.{module}.compare", partial(compare, most=0))
    assert f"Over the 2 tasks that all of them worked on. 0 {said}" in shown(client)
    assert client.get(f"/api/v1{ADDRESS}").json()["looked_at"] == 0

    monkeypatch.setattr("annotation_server.runs.management.commands.compare_approaches.MOST_TASKS", 0)
    assert "0 of them were drawn (--every-task counts all)" in printed("bottles")
    assert "of them were drawn" not in printed("bottles", "--every-task")


# The command


def printed(*arguments: str) -> str:
    out = io.StringIO()
    call_command("compare_approaches", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_prints_a_table(tried: Project) -> None:
    lines = [line.split() for line in printed("bottles").splitlines()]
    assert ["physical_shadow", "automated", "2", "2", "0.0050", "0.0000", "0.0050", "0.500", "(0.095-0.905)"] in [
        line[:9] for line in lines
    ]
    assert "cheapest mix for 90.0% right (gold, exact): 0.1000 USD per record, 100.0% expected" in printed("bottles")
    assert "physical_shadow: automated, 0.0050 USD, 50.0%" in printed("bottles", "--quality", "0.5")


def test_the_commands_json_is_the_apis(client: Client, tried: Project) -> None:
    assert json.loads(printed("bottles", "--json")) == client.get(f"/api/v1{ADDRESS}").json()


def test_the_commands_csv(client: Client, tried: Project, tmp_path: Path) -> None:
    file = tmp_path / "approaches.csv"
    assert printed("bottles", "--csv", str(file)) == f"{file}: 6 rows\n"
    assert file.read_bytes() == client.get(f"{ADDRESS}.csv").getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "there is no project 'no-such'"),
        (["bottles", "--quality", "90"], "--quality is from 0 to 1, got 90"),
        (["bottles", "--endpoint", "x"], "no endpoint 'x' has a run in bottles; there are: none yet"),
    ],
)
def test_a_mistake_is_one_line(project: Project, arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError) as refused:
        printed(*arguments)
    assert (str(refused.value), refused.value.returncode) == (message, 2)


def test_a_file_that_cannot_be_written_is_one_line(tried: Project, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"approaches\.csv: No such file or directory$"):
        printed("bottles", "--csv", str(tmp_path / "no-such" / "approaches.csv"))


def test_the_command_says_when_there_is_nothing(project: Project) -> None:
    assert printed("bottles") == "nothing to compare yet: nobody has answered, and no run has settled a task\n"


def test_the_python_client(tried: Project, live_server: Any) -> None:
    person = tried.memberships.get(role=Membership.Role.MANAGER).person
    _row, secret = create_token(person=person, name="test")
    with WinnowClient(live_server.url, secret) as winnow:
        assert winnow.approaches("bottles", quality=0.5)["mix"]["chosen"]["cost_usd"] == 0.005


def test_names_in_a_plot_do_not_cover_each_other() -> None:
    """Where people's own figure stands for what copies them, two points are always on one level."""
    near = [
        {"name": "Manual", "kind": "manual", "x": 0.1, "y": 0.9, "low": 0.8, "high": 0.95},
        {"name": "Answer-driven *", "kind": "answer_driven", "x": 0.105, "y": 0.9, "low": 0.8, "high": 0.95},
        {"name": "Automated", "kind": "automated", "x": 0.1, "y": 0.9},
    ]
    plot = cost_plot(near, "Cost")
    names = re.findall(r'<text class="name" text-anchor="(\w+)" x="([^"]+)" y="([^"]+)">([^<]+)<', plot)
    assert [name for *_place, name in names] == ["Manual", "Answer-driven *", "Automated"]
    boxes = []
    for anchor, x, y, name in names:
        left = float(x) - (7 * len(name) if anchor == "end" else 0)
        boxes.append((left, float(y), left + 7 * len(name)))
    for one, other in itertools.combinations(boxes, 2):
        assert abs(one[1] - other[1]) >= 13 or one[2] <= other[0] or other[2] <= one[0], (one, other)
    assert "Manual: 0.1000 USD, 90.0 %" in plot


def test_a_plot_of_nothing_or_of_free_calls_is_drawn() -> None:
    assert "<svg" in cost_plot([], "Cost")
    free = cost_plot(
        [{"name": "<b>", "kind": "automated", "x": 0.0, "y": 0.0, "low": 0.0, "high": 0.3}], "Cost", wanted=1
    )
    assert "&lt;b&gt;: 0.0000 USD, 0.0 %" in free
    assert "<b>" not in free
