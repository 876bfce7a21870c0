"""Words that try to be more than words, in a real browser: nothing runs, nothing is wider than the page, and a
right-to-left override ends where the words end. Not here: what is stored and exported (tests/workers).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import model_annotator
from annotation_server.projects.models import Membership
from annotation_server.samples.models import Candidate
from tests.browser.conftest import picture
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

SignIn = Callable[..., Page]
HOSTILE = "\x00</script><img src=x onerror=pwned()><script>pwned()</script>\u202ereversed " + "x" * 100_000


@pytest.mark.parametrize("where", ["tasks/{}", "disputed/{}"])
def test_words_stay_words(where: str, sign_in: SignIn) -> None:
    project = make_project(slug="bottles", overlap=2, dimensions=["physical_shadow"])
    sample, (task,) = make_sample(project, external_id="bottle", original=picture("slategray"))
    Candidate.objects.filter(sample=sample).update(image=picture("teal"))
    for name, answer in (("ada", "A"), ("bob", "B")):
        annotate(task, make_member(project, username=name), answer, rationale=HOSTILE)
    annotate(task, model_annotator("m"), "A", approach=Approach.AUTOMATED, rationale=HOSTILE)
    page = sign_in(make_member(project, Membership.Role.MANAGER))
    page.goto(f"/projects/bottles/{where.format(task.pk)}")
    said = page.locator(".vote p", has_text="reversed").first
    expect(said).to_be_visible()
    assert said.inner_text().startswith("</script><img src=x onerror=pwned()><script>pwned()</script>")
    assert page.locator("img[src='x'], main script:not([src]):not([type])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("getComputedStyle(document.querySelector('.vote p:last-of-type')).unicodeBidi") == "isolate"
    # What comes after the words still runs from left to right: its first letter is left of its last.
    after = page.evaluate(
        """() => {
          const vote = document.querySelector('.vote');
          const text = document.createTextNode('after');
          vote.append(text);
          const edge = (from) => { const r = document.createRange(); r.setStart(text, from); r.setEnd(text, from + 1);
                                   return r.getBoundingClientRect().left; };
          return [edge(0), edge(4)];
        }"""
    )
    assert after[0] < after[1]
