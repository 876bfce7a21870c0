"""Guidelines: the project's own before ours, in the reader's language, with examples that give no answer away."""

from __future__ import annotations

import pytest
from django.contrib.staticfiles import finders
from django.test import Client
from django.utils import timezone, translation

from annotation_server.accounts.models import AuditEvent
from annotation_server.annotations.models import GoldAnswer
from annotation_server.annotations.services import withdraw
from annotation_server.projects import guidelines_en, guidelines_zh_hans
from annotation_server.projects.guidelines import EXAMPLES, as_html, default_examples, guidelines_of, phrases_of
from annotation_server.projects.models import Membership, Project
from annotation_server.samples.models import Example, Image
from annotation_server.tasks.models import Task
from fixtures.draw_guidelines import PAIRS
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task
from trainer.contract.dimensions import DIMENSIONS, Dimension

pytestmark = pytest.mark.django_db

SHADOW = Dimension.PHYSICAL_SHADOW
MANAGER = Membership.Role.MANAGER


def judged_task(project: Project) -> Task:
    """A task that wants no more votes."""
    task = make_task(project)
    annotate(task, make_member(project), "A")
    return task


def add_example(client: Client, task: Task, **fields: str) -> int:
    address = f"/projects/{task.project.slug}/tasks/{task.pk}/example"
    return client.post(address, {"letter": "B", "flawed": "yes", "caption": "No shadow."} | fields).status_code


def test_it_works(client: Client) -> None:
    project = make_project(guidelines="Judge **fast**.")
    client.force_login(make_member(project))

    page = client.get(f"/projects/{project.slug}/guidelines").content.decode()
    fragment = client.get(f"/projects/{project.slug}/guidelines/physical_shadow").content.decode()

    assert "Judge <strong>fast</strong>." in page
    assert all(f'id="guidelines-{dimension}"' in page for dimension in DIMENSIONS)
    assert page.count("<figure") == sum(len(names) for names in EXAMPLES.values())
    assert "<html" not in fragment
    assert "Judge <strong>fast</strong>." in fragment
    assert fragment.count("<figure") == len(EXAMPLES[SHADOW])
    assert "Two shadows, one sun." in fragment


def test_every_dimension_has_texts_phrases_and_drawn_examples_in_both_languages() -> None:
    for ours in (guidelines_en, guidelines_zh_hans):
        assert set(ours.TEXTS) == set(ours.PHRASES) == set(EXAMPLES) == set(DIMENSIONS)
        assert all(6 <= len(phrases) <= 9 for phrases in ours.PHRASES.values())
        assert set(ours.CAPTIONS) == {name for names in EXAMPLES.values() for name in names}
    for dimension, names in EXAMPLES.items():
        assert [pair.name for pair in PAIRS if pair.dimension == dimension] == list(names)
        assert {example.flawed for example in default_examples(dimension)} == {True, False}
        for name in names:
            for side in ("left", "right"):
                assert finders.find(f"guidelines/{name}-{side}.webp"), (name, side)


def test_the_text_follows_the_readers_language() -> None:
    project = make_project()
    with translation.override("zh-hans"):
        assert "影子" in as_html(guidelines_of(project, SHADOW))
        assert phrases_of(project, SHADOW)[1] == "商品下方没有影子。"
        assert "一个太阳" in default_examples(SHADOW)[3].caption
    assert "First find the light" in as_html(guidelines_of(project, SHADOW))


def test_no_html_or_script_gets_through() -> None:
    hostile = (
        "<script>alert(1)</script>\n\n<img src=x onerror=alert(1)>\n\n[click](javascript:alert(1)) "
        '[data](data:text/html;base64,PHNjcmlwdD4=) ![x](javascript:alert(1)) <a href="#">x</a> '
        '[title](https://example.org ""><script>alert(1)</script>")\n\n```"><script>\nx\n```'
    )
    html = as_html(hostile)
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert 'href="data' not in html
    assert '<a href="#">' not in html


def test_a_managers_own_text_and_phrases_stand_until_they_are_empty(client: Client) -> None:
    project = make_project()
    client.force_login(make_member(project, MANAGER))
    address = f"/projects/{project.slug}/guidelines/physical_shadow/edit"

    saved = client.post(address, {"text": "Only *real* shadows. <b>no</b>", "phrases": " One. \n\nTwo."})

    project.refresh_from_db()
    assert saved.status_code == 302
    assert phrases_of(project, SHADOW) == ["One.", "Two."]
    assert "<em>real</em> shadows. &lt;b&gt;no&lt;/b&gt;" in as_html(guidelines_of(project, SHADOW))
    assert "First find the light" not in as_html(guidelines_of(project, SHADOW))
    assert "handle" in as_html(guidelines_of(project, Dimension.APPEARANCE_DEFORMATION))
    assert AuditEvent.objects.get(verb="project.guidelines").detail == {"dimension": "physical_shadow"}

    client.post(address, {"text": "  ", "phrases": ""})
    project.refresh_from_db()
    assert project.dimension_guidelines == {}
    assert "First find the light" in as_html(guidelines_of(project, SHADOW))


def test_a_preview_saves_nothing(client: Client) -> None:
    project = make_project()
    client.force_login(make_member(project, MANAGER))
    address = f"/projects/{project.slug}/guidelines/physical_shadow/edit"
    page = client.post(address, {"text": "# Not *yet*", "phrases": "", "preview": "1"}).content.decode()
    assert "<h1>Not <em>yet</em></h1>" in page
    project.refresh_from_db()
    assert project.dimension_guidelines == {}


def test_too_many_phrases_are_refused_on_the_page(client: Client) -> None:
    project = make_project()
    client.force_login(make_member(project, MANAGER))
    address = f"/projects/{project.slug}/guidelines/physical_shadow/edit"
    page = client.post(address, {"text": "", "phrases": "x\n" * 31})
    assert page.status_code == 422
    assert "At most 30 phrases" in page.content.decode()


def test_a_dimension_that_the_project_does_not_judge_has_no_guidelines(client: Client) -> None:
    project = make_project(dimensions=["physical_shadow"])
    client.force_login(make_member(project, MANAGER))
    assert client.get(f"/projects/{project.slug}/guidelines/placement_layout").status_code == 404
    assert client.get(f"/projects/{project.slug}/guidelines/taste/edit").status_code == 404


def test_a_judged_candidate_becomes_an_example_before_ours_and_goes_again(client: Client) -> None:
    project = make_project()
    manager = make_member(project, MANAGER)
    task = judged_task(project)
    client.force_login(manager)

    assert f"/tasks/{task.pk}/example" in client.get(f"/projects/{project.slug}/tasks/{task.pk}").content.decode()
    assert add_example(client, task) == 302

    fragment = client.get(f"/projects/{project.slug}/guidelines/physical_shadow").content.decode()
    example = Example.objects.get()
    assert example.image == task.sample.candidates.get(letter="B").image
    assert 0 < fragment.index("No shadow.") < fragment.index("the can looks pasted on")
    assert f"/previews/{example.image.sha256}" in fragment
    assert f"/previews/{task.sample.original.sha256}" in fragment

    assert client.post(f"/projects/{make_project().slug}/examples/{example.pk}/remove").status_code == 404
    client.post(f"/projects/{project.slug}/examples/{example.pk}/remove")
    assert not Example.objects.exists()
    assert list(AuditEvent.objects.values_list("verb", flat=True)) == ["example.add", "example.remove"]


def test_a_candidate_is_an_example_once(client: Client) -> None:
    project = make_project()
    task = judged_task(project)
    client.force_login(make_member(project, MANAGER))
    assert add_example(client, task) == 302
    assert add_example(client, task) == 422


def test_what_may_still_be_asked_cannot_become_an_example(client: Client) -> None:
    project = make_project(overlap=2)
    manager = make_member(project, MANAGER)
    client.force_login(manager)
    half = make_task(project)
    annotate(half, manager, "A")
    assert add_example(client, half) == 422  # another vote is wanted

    gold = judged_task(make_project())
    GoldAnswer.objects.create(task=gold, answer=frozenset("A"))
    gold_manager = make_member(gold.project, MANAGER)
    client.force_login(gold_manager)
    assert add_example(client, gold) == 404  # the manager may be asked about it
    annotate(gold, gold_manager, "A")
    assert add_example(client, gold) == 422  # others may
    assert not Example.objects.exists()


def test_an_example_is_hidden_from_who_may_be_asked_about_its_picture_again(client: Client) -> None:
    project = make_project()
    voter = make_member(project)
    task = make_task(project)
    vote = annotate(task, voter, "A")
    other = make_member(project)
    client.force_login(make_member(project, MANAGER))
    add_example(client, task)
    address = f"/projects/{project.slug}/guidelines/physical_shadow"
    client.force_login(other)
    assert "No shadow." in client.get(address).content.decode()

    withdraw(vote, voter)

    for person in (voter, other):
        client.force_login(person)
        assert "No shadow." not in client.get(address).content.decode()
        assert "No shadow." not in client.get(f"/projects/{project.slug}/guidelines").content.decode()
        assert "No shadow." not in client.get(f"/api/v1/projects/{project.slug}/guidelines").content.decode()


def test_a_picture_shown_by_a_task_still_open_is_no_example_either(client: Client) -> None:
    project = make_project()
    task = judged_task(project)
    again, _tasks = make_sample(project, dimensions=["physical_shadow"])
    again.candidates.filter(letter="C").update(image=task.sample.candidates.get(letter="B").image)
    client.force_login(make_member(project, MANAGER))
    assert add_example(client, task) == 422


def test_a_picture_that_was_taken_down_is_shown_no_more(client: Client) -> None:
    project = make_project()
    task = judged_task(project)
    client.force_login(make_member(project, MANAGER))
    add_example(client, task)
    Image.objects.filter(pk=task.sample.candidates.get(letter="B").image_id).update(withdrawn_at=timezone.now())
    assert "No shadow." not in client.get(f"/projects/{project.slug}/guidelines").content.decode()


def test_the_api_has_the_same(client: Client) -> None:
    project = make_project(
        dimensions=["physical_shadow", "placement_layout"], dimension_guidelines={"physical_shadow": "Ours."}
    )
    client.force_login(make_member(project))
    shadow, placement = client.get(f"/api/v1/projects/{project.slug}/guidelines").json()
    assert (shadow["dimension"], shadow["text"], shadow["own"]) == ("physical_shadow", "Ours.", True)
    assert (placement["own"], placement["phrases"]) == (False, phrases_of(project, Dimension.PLACEMENT_LAYOUT))
    assert placement["examples"][0]["caption"].startswith("The jar floats")
    assert set(placement["examples"][0]) == {"left", "left_is_original", "right", "caption", "flawed"}
