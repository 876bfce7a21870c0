"""Comparing approaches over what workers really leave in the ledger, against what the endpoint charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import add_gold
from annotation_server.projects.models import Project
from annotation_server.runs import services
from annotation_server.runs.comparison import ALL, compare
from annotation_server.runs.models import RunTask
from annotation_server.runs.selection import Wanted
from tests.server.factories import annotate, make_member
from tests.workers.conftest import FakeEndpoint, MakeEndpoint
from tests.workers.scenes import project_with_tasks

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_three_on_the_same_tasks(fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Callable[[], None]) -> None:
    """People say A in 20 s each, at 36 USD an hour 0.20 USD. The model refuses once and is cut off once, which nobody
    knows the price of; another answer than the given one is refused once, and paid for."""
    project, tasks = project_with_tasks(2)
    Project.objects.update(hourly_wage=Decimal(36))
    project.refresh_from_db()
    person = make_member(project)
    for task in tasks:
        annotate(task, person, "A", seconds_spent=20)
    known = {}
    for approach, modes in ((Approach.AUTOMATED, ["refusal", "cut"]), (Approach.ANSWER_DRIVEN, ["different"])):
        fake.control(reset=True)
        fake.control(script=modes)
        endpoint = make_endpoint(name=approach.value.replace("_", "-"))
        wanted = Wanted(project=project, endpoint=endpoint, approach=approach)
        with pytest.raises(services.RunRefused, match=r"^nothing to "):
            services.start_run(wanted)  # answered by people, or explained by the model before
        services.start_run(replace(wanted, resolved_too=True))
        work()
        (tokens,) = {each["input_tokens"] + each["output_tokens"] for each in fake.charges().values()}
        assert len(fake.charges()) == 2 + len(modes)
        known[approach.value] = 3 * tokens / 1000  # three answered calls, a dollar per thousand
    add_gold({tasks[0]: frozenset("A")})

    found = compare(project)

    assert set(RunTask.objects.values_list("state", flat=True)) == {"accepted"}
    lines = {line.approach: line for line in found.of(ALL)}
    assert sum(found.tasks.values()) == 2
    for name, usd in known.items():
        line = lines[name]
        assert (line.asked, line.accepted) == (2, 2)
        assert line.token_usd == pytest.approx(usd / 2)
        assert line.model_seconds is not None
        assert line.model_seconds > 0
        assert line.words is not None
    assert [lines[name].unknown_calls for name in known] == [1, 0]
    assert lines["manual"].people_usd == lines["answer_driven"].people_usd == pytest.approx(0.2)
    assert (lines["manual"].gold.exact.value, lines["answer_driven"].gold.exact.value) == (1, 1)
    assert lines["answer_driven"].given_gold == 0  # gold came later
