"""Reviewing what stands and what models said: accept, correct, reject; the original is kept."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from annotation_server.annotations.decisions import adjudicate, review
from annotation_server.annotations.models import Annotation, Approach, Resolution, Review
from annotation_server.annotations.review_queue import Kind, ReviewQueue, next_item, queue_progress
from annotation_server.annotations.services import AnnotationRefused, add_gold, model_annotator
from annotation_server.projects.access import access_to
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.models import Task
from tests.server.factories import annotate, make_member, make_project, make_task

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(dimensions=["physical_shadow"])


def say(task: Task, verdict: str, annotation: Annotation | None = None, **fields: Any) -> Review:
    """A verdict by a reviewer of the task's project."""
    reviewer = make_member(task.project, Membership.Role.REVIEWER)
    defaults: dict[str, Any] = {"idempotency_key": "k", "person": reviewer}
    return review(task=task, annotation=annotation, verdict=verdict, **defaults | fields)


def resolved(project: Project) -> Task:
    """A task somebody has answered with A and C."""
    task = make_task(project)
    annotate(task, make_member(project), "AC", rationale="B floats.")
    return task


def test_accepting_changes_nothing(project: Project) -> None:
    task = resolved(project)
    before = Resolution.objects.values().get()
    said = say(task, "accepted")
    assert (said.verdict, said.decision) == ("accepted", None)
    assert said.annotation == Annotation.objects.get()
    assert Resolution.objects.values().get() == before


def test_a_correction_stands_and_the_original_is_kept(project: Project) -> None:
    task = resolved(project)
    said = say(task, "corrected", answer=frozenset("A"), rationale="B and C float.")

    resolution = Resolution.objects.get()
    assert (resolution.answer, resolution.source) == (frozenset("A"), "review")
    assert resolution.rationale_from == said.decision
    assert said.decision is not None
    assert (said.decision.standing, said.decision.approach) == ("decision", "manual")
    original = Annotation.objects.get(standing="vote")
    assert (original.answer, original.rationale) == (frozenset("AC"), "B floats.")


def test_edited_words_keep_their_approach(project: Project) -> None:
    task = resolved(project)
    model = annotate(
        task, model_annotator("m"), "AC", approach=Approach.ANSWER_DRIVEN, rationale="B flots.", prompt_version="p1"
    )
    assert Resolution.objects.get().rationale_from == model
    say(task, "corrected", answer=frozenset("AC"), rationale="B floats.")
    stands = Resolution.objects.get().rationale_from
    assert stands is not None
    assert (stands.rationale, stands.approach, stands.prompt_version) == ("B floats.", "answer_driven", "p1")
    assert stands.copied_from == model


def test_rejected_votes_go_to_an_adjudicator(project: Project) -> None:
    task = resolved(project)
    say(task, "rejected", reason="C is fine too")
    assert Task.objects.get().state == "disputed"
    assert not Resolution.objects.exists()

    reviewer = make_member(project, Membership.Role.REVIEWER)
    adjudicate(task=task, answer=frozenset("A"), person=reviewer, idempotency_key="d")
    assert Resolution.objects.get().source == "adjudication"


def test_votes_are_rejected_even_where_a_model_wrote_the_reasoning(project: Project) -> None:
    task = resolved(project)
    annotate(task, model_annotator("m"), "AC", approach=Approach.ANSWER_DRIVEN, rationale="Reasons.")
    assert say(task, "rejected", reason="wrong").annotation is None
    assert Task.objects.get().state == "disputed"


def test_a_rejected_decision_goes_back_to_an_adjudicator(project: Project) -> None:
    task = resolved(project)
    reviewer = make_member(project, Membership.Role.REVIEWER)
    adjudicate(task=task, answer=frozenset("A"), person=reviewer, idempotency_key="d")
    say(task, "rejected", reason="no")
    assert Task.objects.get().state == "disputed"
    assert not Resolution.objects.exists()


def model_resolved(project: Project, answer: str = "A", rationale: str = "") -> tuple[Task, Annotation]:
    """A task that a confident model resolved."""
    Project.objects.update(model_confidence=0.5)
    task = Task.objects.select_related("project").get(pk=make_task(project).pk)
    said = annotate(
        task, model_annotator("m"), answer, approach=Approach.AUTOMATED, confidence=0.9, rationale=rationale
    )
    assert Resolution.objects.get(task=task).source == "model"
    return task, said


@pytest.mark.parametrize("rationale", ["", "Because."])
def test_a_rejected_model_answer_opens_the_task_again(project: Project, rationale: str) -> None:
    task, said = model_resolved(project, rationale=rationale)
    assert say(task, "rejected", reason="wrong").annotation == said
    assert Task.objects.get().state == "open"
    assert not Resolution.objects.exists()


def test_the_same_answer_by_another_model_does_not_bring_it_back(project: Project) -> None:
    task, said = model_resolved(project)
    say(task, "rejected", said, reason="wrong")
    annotate(task, model_annotator("n"), "A", approach=Approach.AUTOMATED, confidence=0.9)
    assert Task.objects.get().state == "open"
    annotate(task, model_annotator("n"), "B", approach=Approach.AUTOMATED, confidence=0.9)
    assert Resolution.objects.get().answer == frozenset("B")


def test_rejecting_a_models_words_leaves_what_people_decided(project: Project) -> None:
    task = resolved(project)
    said = annotate(task, model_annotator("m"), "B", approach=Approach.AUTOMATED, rationale="Nonsense.")
    reviewer = make_member(project, Membership.Role.REVIEWER)
    adjudicate(task=task, answer=frozenset("A"), person=reviewer, idempotency_key="d")
    say(task, "rejected", said, reason="nonsense")
    assert Resolution.objects.get().source == "adjudication"


def test_gold_is_corrected_but_never_rejected(project: Project) -> None:
    task = make_task(project)
    add_gold({task: frozenset("A")})
    with pytest.raises(AnnotationRefused, match="gold cannot be rejected"):
        say(task, "rejected", reason="no")
    say(task, "corrected", answer=frozenset("AB"), rationale="")
    assert Resolution.objects.get().answer == frozenset("AB")


@pytest.mark.parametrize(
    ("verdict", "match"),
    [("rejected", "needs a reason"), ("corrected", "needs an answer"), ("liked", "'liked' is no verdict")],
)
def test_a_verdict_that_lacks_something_is_refused(project: Project, verdict: str, match: str) -> None:
    with pytest.raises(AnnotationRefused, match=match):
        say(resolved(project), verdict)
    assert not Review.objects.exists()


def test_nothing_stands_nothing_to_review(project: Project) -> None:
    with pytest.raises(AnnotationRefused, match="nothing stands"):
        say(make_task(project), "accepted")


def test_the_same_key_again_reviews_once(project: Project) -> None:
    task = resolved(project)
    reviewer = make_member(project, Membership.Role.REVIEWER)
    first = say(task, "corrected", person=reviewer, answer=frozenset("A"), rationale="")
    again = say(task, "rejected", person=reviewer, reason="no")
    assert first == again
    assert Resolution.objects.get().answer == frozenset("A")


# The queue


def walk(project: Project, queue: ReviewQueue) -> list[int]:
    """What comes, in order, when everything is passed over."""
    access = access_to(make_member(project, Membership.Role.REVIEWER), project.slug)
    seen, after = [], 0
    while item := next_item(access, queue, after):
        seen.append(item.annotation.pk if item.annotation else item.task.pk)
        after = item.after
    return seen


def test_a_share_of_resolved_tasks_is_always_the_same_share(project: Project) -> None:
    tasks = [resolved(project).pk for _ in range(60)]
    make_task(project)  # open: nothing stands
    gold = make_task(project)
    add_gold({gold: frozenset("A")})

    assert walk(project, ReviewQueue(kind=Kind.RESOLVED, share=100)) == tasks
    half = walk(project, ReviewQueue(kind=Kind.RESOLVED, share=50))
    assert 15 <= len(half) <= 45
    assert half == walk(project, ReviewQueue(kind=Kind.RESOLVED, share=50))
    assert set(walk(project, ReviewQueue(kind=Kind.RESOLVED, share=25))) < set(half)


def test_progress_counts_what_anybody_reviewed_rejected_ones_too(project: Project) -> None:
    tasks = [resolved(project) for _ in range(3)]
    say(tasks[0], "accepted")
    say(tasks[1], "rejected", reason="no")
    access = access_to(make_member(project, Membership.Role.REVIEWER), project.slug)
    progress = queue_progress(access, ReviewQueue(kind=Kind.RESOLVED, share=100))
    assert (progress.reviewed, progress.total, progress.held_back) == (2, 3, 0)
    assert walk(project, ReviewQueue(kind=Kind.RESOLVED, share=100)) == [tasks[2].pk]


def test_unsure_models_and_one_annotators_words(project: Project) -> None:
    task = resolved(project)
    vote = Annotation.objects.get()
    said = {
        confidence: annotate(task, model_annotator("m"), "A", approach=Approach.AUTOMATED, confidence=confidence).pk
        for confidence in (0.9, 0.2, None)
    }
    other = annotate(task, model_annotator("n"), "A", approach=Approach.AUTOMATED, confidence=0.95).pk

    assert walk(project, ReviewQueue(kind=Kind.MODELS, confidence=0.8)) == [said[0.2], said[None]]
    one = ReviewQueue(kind=Kind.ANNOTATOR, annotator=model_annotator("m").pk)
    assert walk(project, one) == list(said.values())
    run = ReviewQueue(kind=Kind.ANNOTATOR, annotator=model_annotator("m").pk, first=said[0.2], last=said[0.2])
    assert walk(project, run) == [said[0.2]]
    assert walk(project, ReviewQueue(kind=Kind.ANNOTATOR, annotator=vote.annotator_id)) == [vote.pk]
    assert other not in walk(project, one)


def test_who_may_still_vote_on_a_task_does_not_review_it(project: Project, client: Client) -> None:
    task, said = model_resolved(project, answer="BD", rationale="what-a-model-saw")
    assert walk(project, ReviewQueue(kind=Kind.RESOLVED, share=100)) == []
    reviewer = make_member(project, Membership.Role.REVIEWER)
    progress = queue_progress(access_to(reviewer, project.slug), ReviewQueue(kind=Kind.MODELS, confidence=1))
    assert (progress.total, progress.held_back) == (0, 1)

    client.force_login(reviewer)
    root = f"/projects/{project.slug}/review"
    for page in (f"{root}?kind=models&confidence=1", f"{root}?kind=resolved&share=100", root):
        assert "what-a-model-saw" not in client.get(page).content.decode()
    verdict = {"task": task.pk, "annotation": said.pk, "verdict": "accepted", "idempotency_key": "k"}
    assert client.post(f"{root}?kind=models", verdict).status_code == 403
    assert not Review.objects.exists()


# The page


def test_the_page_works_through_a_queue(project: Project, client: Client) -> None:
    tasks = [resolved(project) for _ in range(3)]
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    queue = f"/projects/{project.slug}/review?kind=resolved&share=100"
    common: dict[str, Any] = {"annotation": "", "rationale": "", "reason": ""}

    page = client.get(queue).content.decode()
    assert "0 of 3 reviewed" in page
    assert "B floats." in page

    for number, task in enumerate(tasks):
        verdicts: dict[int, dict[str, Any]] = {
            0: {"verdict": "accepted"},
            1: {"verdict": "corrected", "letters": ["A"], "rationale": "B and C float."},
            2: {"verdict": "rejected", "reason": "unclear"},
        }
        told = {"task": task.pk, "idempotency_key": f"k{number}"} | verdicts[number]
        posted = client.post(queue, common | told, follow=True)
        assert posted.status_code == 200
    assert "All 3 are reviewed." in posted.content.decode()
    assert [row.verdict for row in Review.objects.order_by("pk")] == ["accepted", "corrected", "rejected"]
    assert Resolution.objects.get(task=tasks[1]).answer == frozenset("A")
    assert Task.objects.get(pk=tasks[2].pk).state == "disputed"


@pytest.mark.parametrize(
    ("posted", "said"),
    [
        ({"verdict": "rejected"}, "Say why"),
        ({"verdict": "corrected", "letters": ["A", "C"], "rationale": "B floats."}, "Nothing was changed"),
        ({"verdict": "corrected"}, "Choose one or more candidates"),
        ({"verdict": "liked"}, "liked is not one of the available choices"),
    ],
)
def test_a_mistake_is_said_and_what_was_typed_stays(
    project: Project, client: Client, posted: dict[str, Any], said: str
) -> None:
    task = resolved(project)
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    queue = f"/projects/{project.slug}/review?kind=resolved&share=100"
    defaults: dict[str, Any] = {"task": task.pk, "rationale": "typed", "idempotency_key": "k"}
    page = client.post(queue, defaults | posted)
    assert page.status_code == 422
    assert said in page.content.decode()
    assert str(posted.get("rationale", "typed")) in page.content.decode()
    assert not Review.objects.exists()


def test_passing_over_leaves_it_for_later(project: Project, client: Client) -> None:
    first, second = resolved(project), resolved(project)
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    queue = f"/projects/{project.slug}/review?kind=resolved&share=100"
    assert first.sample.external_id in client.get(queue).content.decode()
    page = client.get(f"{queue}&after={first.pk}").content.decode()
    assert second.sample.external_id in page
    assert first.sample.external_id not in page
    assert "you passed over the rest" in client.get(f"{queue}&after={second.pk}").content.decode()


def test_a_queue_that_makes_no_sense_shows_the_chooser(project: Project, client: Client) -> None:
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    root = f"/projects/{project.slug}/review"
    assert client.get(root).status_code == 200
    for query in ("kind=all", "kind=annotator", "kind=resolved&share=0", "kind=models&confidence=2"):
        assert client.get(f"{root}?{query}").status_code == 422, query
    assert "Nothing to review here." in client.get(f"{root}?kind=resolved").content.decode()


def test_other_projects_tasks_are_not_there(project: Project, client: Client) -> None:
    other = resolved(make_project(dimensions=["physical_shadow"]))
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    verdict = {"task": other.pk, "verdict": "accepted", "idempotency_key": "k"}
    assert client.post(f"/projects/{project.slug}/review?kind=resolved", verdict).status_code == 404
