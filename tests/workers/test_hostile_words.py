"""A reasoning of 100 kB with script, right-to-left overrides and NULs: stored, shown and exported as words."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.test import Client

from annotation_server.accounts.services import create_token
from annotation_server.annotations.models import Annotation, Approach, Resolution
from annotation_server.datasets.services import create_export, create_version, export_version, freeze_version
from annotation_server.projects.models import Membership
from annotation_server.runs import services
from annotation_server.runs.models import Attempt
from annotation_server.runs.selection import Wanted
from tests.server.factories import annotate, make_member
from tests.workers.conftest import FakeEndpoint, MakeEndpoint
from tests.workers.scenes import project_with_tasks
from trainer.contract.exports import read_records, verify_export

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]
MARKUP = "</script><img src=x onerror=pwned()>\u202e"


class Reader(HTMLParser):
    """What a browser's parser would make of a page: its text, and every element with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def is_harmless(self) -> bool:
        return all("onerror" not in attrs and attrs.get("src") != "x" for _, attrs in self.elements)


def test_it_is_stored_shown_and_exported_harmlessly(
    fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work, client: Client, tmp_path: Path
) -> None:
    project, (task, other) = project_with_tasks(2, slug="bottles", rationale_max_words=None, overlap=1)
    person = make_member(project)
    annotate(task, person, "A")
    annotate(other, person, "A")
    fake.control(script=["hostile_refused", "hostile"], mode="hostile")
    run = services.start_run(
        Wanted(project=project, endpoint=make_endpoint(concurrency=1), approach=Approach.ANSWER_DRIVEN)
    )
    work()

    rationale = Annotation.objects.get(task=task, approach=Approach.ANSWER_DRIVEN).rationale
    assert len(rationale) > 100_000
    assert MARKUP in rationale
    assert "\x00" not in rationale
    assert Resolution.objects.get(task=task).rationale_from is not None
    refused = Attempt.objects.get(outcome="rejected")
    assert (refused.reason, MARKUP[:12] in refused.detail) == ("contradicts", True)

    manager = make_member(project, Membership.Role.MANAGER)
    client.force_login(manager)
    pages = {
        f"/projects/bottles/runs/{run.pk}": "contradicts",
        f"/projects/bottles/runs/{run.pk}/attempts": MARKUP[:12],
        f"/projects/bottles/tasks/{task.pk}": MARKUP,
        "/projects/bottles/review?kind=resolved&share=100": MARKUP,
        "/projects/bottles/tasks": "",
    }
    for address, expected in pages.items():
        answer = client.get(address)
        assert answer.status_code == 200, address
        page = Reader(answer.content.decode())
        assert page.is_harmless, address
        assert expected in page.text, address

    _, secret = create_token(person=manager, name="test")
    spoken = client.get(f"/api/v1/projects/bottles/tasks/{task.pk}", headers={"Authorization": f"Bearer {secret}"})
    assert rationale in {one["rationale"] for one in spoken.json()["annotations"]}
    assert spoken["Content-Type"].startswith("application/json")

    version = create_version(project, "first", None)
    freeze_version(version)
    export = create_export(version, person=None, directory=tmp_path / "export")
    export_version(export)
    verify_export(tmp_path / "export")
    records = {record.id: record for record in read_records(tmp_path / "export")}
    assert records[f"{task.sample.external_id}:physical_shadow"].rationale == rationale
    lines = (tmp_path / "export" / "records-00000.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(records)
    for name in ("README.md", "manifest.json", "croissant.json"):
        assert "onerror" not in (tmp_path / "export" / name).read_text(encoding="utf-8")
