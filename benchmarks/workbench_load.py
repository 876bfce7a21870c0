"""The workbench's figures in one database: what people wait for over HTTP, in lists and in the browser.

The web server is the one the launcher starts, with its own processes; the people are threads with one connection
each. Run by workbench.py with the database in the environment. Not here: which databases there are.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")
django.setup()

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY  # noqa: E402 - after the set-up
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from annotation_server import settings  # noqa: E402
from annotation_server.accounts.models import Person  # noqa: E402
from annotation_server.accounts.services import create_token  # noqa: E402
from annotation_server.annotations.services import NewAnnotation, annotator_for, record_annotation  # noqa: E402
from annotation_server.launcher import web_command  # noqa: E402
from annotation_server.projects.models import Membership, Project  # noqa: E402
from annotation_server.samples.models import Candidate, Image, Sample  # noqa: E402
from annotation_server.tasks.models import Slot  # noqa: E402
from annotation_server.tasks.services import claim_next, create_tasks  # noqa: E402
from benchmarks.measurement import Measurement, percentile  # noqa: E402
from benchmarks.pictures import stored_pictures  # noqa: E402

_SMALL, _LARGE, _SCALE = 250, 25_000, 128_000
"""Samples of a small, a large and a full-size project; each is four tasks."""

_PICTURES = 200
"""Different ones: forty samples in a row show none twice."""

_LOOKING_MS = 500
"""How long the browser's annotator looks at a task: nobody is faster, and what comes next is fetched meanwhile."""

_ROUNDS = 200
"""Cycles measured of one thing by one person."""

_LABEL_STUDIO = "peer: Label Studio 1.23.2 on two cores at 10,000 tasks, of another run"
"""Its figures stand in the issue of the workbench, p95 where it has one; how many worked when it was measured does not,
except for the cycles (8). Of a range the end that is harder on us is taken."""

_PEER_NEXT = {"sqlite": 141.0, "postgresql": 124.0}
_PEER_SUBMIT = {"sqlite": 219.0, "postgresql": 70.0}
_PEER_CYCLES = 13.0
_PEER_LIST = 242.0


def measure(samples: int) -> Iterator[Measurement]:
    """Growth of claim and record in one process, then everything over HTTP."""
    call_command("migrate", verbosity=0)
    yield from _growth(samples)
    project = _project(samples)
    _finish_most(project)
    connection.close()
    with _web_server() as port:
        for people in (1, 8):
            yield from _judging(project, port, people, samples)
        yield from _lists(project, port, samples)
        yield from _in_browser(project, port, samples)
    connection.close()


# Over HTTP


@dataclass
class _Judge:
    """One annotator at work: submit an answer, have four tasks in hand, again.

    The page asks for the next tasks with every other answer (`at_once`); apart, the two requests can be told from each
    other.
    """

    port: int
    slug: str
    token: str
    at_once: bool = False
    next_ms: list[float] = field(default_factory=list)
    submit_ms: list[float] = field(default_factory=list)
    error: str = ""

    def work(self, cycles: int, start: threading.Barrier) -> None:
        http = http_connection(self.port)
        claims = self.post(http, f"projects/{self.slug}/claims", {"count": 4})["claims"]
        start.wait()
        http.close()  # the server may have ended an idle connection: open it again
        for _ in range(cycles):
            began = time.perf_counter()
            said = self.post(
                http,
                f"projects/{self.slug}/tasks/{claims[0]['task']['id']}/annotations",
                {
                    "answer": ["A", "C"],
                    "rationale": "The shadow of B falls to the wrong side.",
                    "idempotency_key": claims[0]["lease_token"],
                    "hold": 4 if self.at_once and len(claims) <= 3 else 0,
                },
            )
            answered = time.perf_counter()
            if said["next"]:
                claims = said["next"]["claims"]
            elif self.at_once:
                claims = claims[1:]
            else:
                claims = self.post(http, f"projects/{self.slug}/claims", {"count": 4})["claims"]
            self.submit_ms.append((answered - began) * 1000)
            self.next_ms.append((time.perf_counter() - answered) * 1000)
            assert said["standing"] == "vote", said
            assert len(claims) >= 3, f"{len(claims)} tasks"
        http.close()

    def post(self, http: http.client.HTTPConnection, path: str, payload: object) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return json.loads(_ask(http, "POST", f"/api/v1/{path}", headers, json.dumps(payload)))


def http_connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def _ask(
    http: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> bytes:
    http.request(method, path, body, headers)
    response = http.getresponse()
    content = response.read()
    if response.status >= 300:
        raise SystemExit(f"{method} {path}: {response.status} {content[:300]!r}")
    return content


def _judging(project: Project, port: int, people: int, samples: int) -> Iterator[Measurement]:
    judges = [_Judge(port, project.slug, _token(_member(project, Membership.Role.ANNOTATOR))) for _ in range(people)]
    connection.close()
    _work(judges, 20)  # uncounted: each web process opens its connections and fills its caches
    cycles = 2 * _ROUNDS if people == 1 else _ROUNDS
    _begin_again(judges, at_once=False)
    _work(judges, cycles)
    nexts = [ms for judge in judges for ms in judge.next_ms]
    submits = [ms for judge in judges for ms in judge.submit_ms]
    setting = f"{_setting(samples)}, {people} annotator{'s' if people > 1 else ''}"
    vendor = connection.vendor
    yield _line("next_p95_ms", "ms", percentile(nexts, 0.95), _PEER_NEXT[vendor], _p50(setting, nexts))
    yield _line("submit_p95_ms", "ms", percentile(submits, 0.95), _PEER_SUBMIT[vendor], _p50(setting, submits))
    _begin_again(judges, at_once=True)
    seconds = _work(judges, cycles)
    both = [ms for judge in judges for ms in judge.submit_ms]
    setting = _p50(
        f"{setting}, as the page asks: next tasks with every other answer (p95 {percentile(both, 0.95):.1f} ms)", both
    )
    yield _line("cycles_per_s", "1/s", len(both) / seconds, _PEER_CYCLES if people == 8 else None, setting)


def _begin_again(judges: Sequence[_Judge], *, at_once: bool) -> None:
    for judge in judges:
        judge.at_once = at_once
        judge.next_ms.clear()
        judge.submit_ms.clear()


def _work(judges: Sequence[_Judge], cycles: int) -> float:
    start = threading.Barrier(len(judges) + 1)
    threads = [threading.Thread(target=judge.work, args=(cycles, start), daemon=True) for judge in judges]
    for thread in threads:
        thread.start()
    start.wait(timeout=60)
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if any(len(judge.next_ms) < cycles for judge in judges):
        raise SystemExit("somebody could not work to the end")
    return seconds


def _lists(project: Project, port: int, samples: int) -> Iterator[Measurement]:
    """A manager pages and filters the task browser, as a page and through the API."""
    manager = _member(project, Membership.Role.MANAGER)
    page = {"Cookie": f"sessionid={_session(manager)}"}
    api = {"Authorization": f"Bearer {_token(manager)}"}
    last = project.tasks.order_by("pk").values_list("pk", flat=True).last() or 0
    connection.close()
    filters = ("", "state=open", "state=resolved", "state=disputed", "dimension=physical_shadow")
    asked = [f"?{one}&after={int(last * share)}" for one in filters for share in (0, 0.5, 0.95)]
    for kind, root, headers in (
        ("page", f"/projects/{project.slug}/tasks", page),
        ("API", f"/api/v1/projects/{project.slug}/tasks", api),
    ):
        http = http_connection(port)
        times = []
        for number in range(_ROUNDS + len(asked)):
            began = time.perf_counter()
            _ask(http, "GET", root + asked[number % len(asked)], headers)
            if number >= len(asked):
                times.append((time.perf_counter() - began) * 1000)
        http.close()
        setting = f"{_setting(samples)}, 1 annotator, {kind} of a manager, 50 rows (peer: 100), 5 filters at 3 depths"
        setting = _p50(setting, times)
        yield _line("list_p95_ms", "ms", percentile(times, 0.95), _PEER_LIST, setting)


# In the browser


def _in_browser(project: Project, port: int, samples: int) -> Iterator[Measurement]:
    """From pressing submit to the next task painted, by the page's own performance marks."""
    from tests.browser.conftest import ARGUMENTS
    from tests.conftest import find_chromium

    chromium = find_chromium()
    if chromium is None:
        print("workbench: without the browser's line, no chromium was found", file=sys.stderr)
        return
    from playwright.sync_api import Error, sync_playwright

    cookie = _session(_member(project, Membership.Role.ANNOTATOR))
    connection.close()
    origin = f"http://127.0.0.1:{port}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.add_cookies([{"name": "sessionid", "value": cookie, "url": origin}])
        page = context.new_page()
        page.goto(f"{origin}/projects/{project.slug}/annotate")
        times = []
        try:
            for number in range(60):
                page.wait_for_function(_SHOWN, arg=number + 1, timeout=5000)
                page.wait_for_timeout(_LOOKING_MS)
                page.keyboard.press("a")
                page.keyboard.press("Enter")
                page.wait_for_function(_SHOWN, arg=number + 2, timeout=5000)
                times.append(float(page.evaluate(_LAST)))
        except Error as error:
            print(f"workbench: without the browser's line: {str(error).splitlines()[0]}", file=sys.stderr)
            return
        finally:
            browser.close()
    setting = _p50(f"{_setting(samples)}, 1 annotator who looks for {_LOOKING_MS} ms, Chromium, 1440x900", times)
    yield _line("browser_next_ms", "ms", percentile(times, 0.95), None, setting)


_SHOWN = "count => performance.getEntriesByName('winnow:shown').length >= count"
"""The page marks `winnow:shown` in the frame after a task is painted, the first one too."""

_LAST = """() => performance.getEntriesByName('winnow:shown').at(-1).startTime
    - performance.getEntriesByName('winnow:submit').at(-1).startTime"""


# Without HTTP


def _growth(samples: int) -> Iterator[Measurement]:
    """A claim costs the same at a thousand and at a hundred thousand tasks. The peer is the small project."""
    small, large = _cycle_times(_SMALL), _cycle_times(samples)
    for index, step in enumerate(("claim", "record")):
        value, peer = percentile(large[index], 0.95) * 1000, percentile(small[index], 0.95) * 1000
        yield _line(f"{step}_p95_ms", "ms", value, peer, f"{_setting(samples)}; peer: {4 * _SMALL:,} tasks, same run")


def _cycle_times(samples: int) -> tuple[list[float], list[float]]:
    """Seconds of each claim and each record in a new project, most of whose tasks are done."""
    project = _project(samples)
    _finish_most(project)
    person = _member(project, Membership.Role.ANNOTATOR)
    annotator = annotator_for(person)
    claims, records = [], []
    for _ in range(min(_ROUNDS, samples * 4 // 10)):
        start = time.perf_counter()
        claim = claim_next(project, person)
        claims.append(time.perf_counter() - start)
        if claim is None:
            break
        start = time.perf_counter()
        record_annotation(
            NewAnnotation(
                task=claim.task,
                annotator=annotator,
                approach="manual",
                answer=frozenset("A"),
                idempotency_key=uuid.uuid4().hex,
            )
        )
        records.append(time.perf_counter() - start)
    return claims, records


# What is measured on


def _project(samples: int) -> Project:
    name = uuid.uuid4().hex
    project = Project.objects.create(slug=name, name=name)
    pictures = _pictures()
    made = Sample.objects.bulk_create(
        [
            Sample(project=project, external_id=f"sample-{n}", original=pictures[5 * n % _PICTURES], content_sha256="")
            for n in range(samples)
        ],
        batch_size=2000,
    )
    Candidate.objects.bulk_create(
        [
            Candidate(sample=sample, letter=letter, image=pictures[(5 * n + place) % _PICTURES])
            for n, sample in enumerate(made)
            for place, letter in enumerate("ABCD", start=1)
        ],
        batch_size=2000,
    )
    create_tasks(
        made,
        project=project,
        candidate_counts={sample.pk: 4 for sample in made},
        dimensions={sample.pk: project.dimensions for sample in made},
    )
    return project


@functools.cache
def _pictures() -> list[Image]:
    """Of a megapixel: what a browser has to fetch and decode."""
    return stored_pictures(_PICTURES, 1024)


def _finish_most(project: Project) -> None:
    """Nine tenths are done: what is finished must not slow down what is left."""
    slots = Slot.objects.filter(project=project).order_by("position")
    last = slots.values_list("position", flat=True)[slots.count() * 9 // 10]
    slots.filter(position__lt=last).order_by().update(state=Slot.State.DONE)
    project.tasks.filter(slots__state=Slot.State.DONE).update(state="resolved", asking=False)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")  # what autovacuum does within a minute


def _member(project: Project, role: str) -> Person:
    person = Person.objects.create(username=uuid.uuid4().hex)
    Membership.objects.create(project=project, person=person, role=role)
    return person


def _token(person: Person) -> str:
    return create_token(person=person, name="bench")[1]


def _session(person: Person) -> str:
    """The cookie of somebody who has signed in."""
    session = SessionStore()
    session[SESSION_KEY] = str(person.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = person.get_session_auth_hash()
    session.create()
    return str(session.session_key)


@contextmanager
def _web_server() -> Iterator[int]:
    """The launcher's web server on the port of the settings, until the block ends."""
    log = settings.WINNOW_HOME / "web.log"
    with log.open("wb") as output:
        server = subprocess.Popen(web_command(), cwd=settings.BASE_DIR, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 60
        while not _answers(settings.PORT):
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the web server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield settings.PORT
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    http = http_connection(port)
    try:
        http.request("GET", "/healthz")
        return http.getresponse().status == 200
    except OSError:
        return False
    finally:
        http.close()


def _setting(samples: int) -> str:
    return f"{connection.vendor}, {4 * samples:,} tasks"


def _p50(setting: str, times: Sequence[float]) -> str:
    return f"{setting}; p50 {statistics.median(times):.1f} ms"


def _line(name: str, unit: str, value: float, peer: float | None, setting: str) -> Measurement:
    ratio = None if peer is None else (peer / value if unit == "ms" else value / peer)
    return {
        "name": f"workbench.{name}",
        "value": round(value, 2),
        "unit": unit,
        "peer": None if peer is None else round(peer, 2),
        "ratio": None if ratio is None else round(ratio, 2),
        "setting": setting if peer is None or "same run" in setting else f"{setting}; {_LABEL_STUDIO}",
    }


def main() -> None:
    """Print one measurement a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", action="store_true")
    samples = _SCALE if parser.parse_args().scale else _LARGE
    for measurement in measure(samples):
        print(json.dumps(measurement), flush=True)


if __name__ == "__main__":
    main()
