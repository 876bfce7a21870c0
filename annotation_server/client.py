"""A typed client of the API over HTTP, for scripts: the demo's scripted person works through it and nothing else.

It needs httpx and the standard library only, so a script that imports it needs no Django settings. Not here: any
knowledge of tables; what is asked and answered stands in the apps' api.py files and in /api/v1/openapi.json.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx


class ApiRefused(Exception):
    """The server answered with an error; `code` is for programs, the message one line for people."""

    def __init__(self, status: int, code: str, message: str, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.status = status
        self.code = code
        self.field = field


class TookTooLong(Exception):
    """What was waited for did not end in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image of a sample; the original has no letter."""

    letter: str
    sha256: str
    width: int
    height: int
    preview: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A task in this person's hands until the lease ends."""

    task_id: int
    sample: str
    dimension: str
    polarity: str
    candidate_count: int
    images: tuple[ImageRef, ...]
    slot_id: int
    lease_token: str
    expires_at: str


def _claimed(said: Mapping[str, Any]) -> Claimed:
    return Claimed(
        task_id=said["task"]["id"],
        sample=said["task"]["sample"],
        dimension=said["task"]["dimension"],
        polarity=said["polarity"],
        candidate_count=said["task"]["candidate_count"],
        images=tuple(ImageRef(**image) for image in said["images"]),
        slot_id=said["slot_id"],
        lease_token=said["lease_token"],
        expires_at=said["expires_at"],
    )


class Client:
    """One person's view of a Winnow server. Methods are named for what the person does; JSON comes back as it is."""

    def __init__(self, base_url: str, token: str, *, timeout: float = 30.0) -> None:
        self._http = httpx.Client(
            base_url=base_url.rstrip("/") + "/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # Projects and samples

    def me(self) -> dict[str, Any]:
        return self._object("GET", "/me")

    def projects(self) -> list[dict[str, Any]]:
        return self._list("GET", "/projects")

    def create_project(self, slug: str, name: str, **settings: object) -> dict[str, Any]:
        return self._object("POST", "/projects", {"slug": slug, "name": name, **settings})

    def project(self, slug: str) -> dict[str, Any]:
        return self._object("GET", f"/projects/{slug}")

    def progress(self, slug: str) -> list[dict[str, Any]]:
        return self._list("GET", f"/projects/{slug}/progress")

    def start_import(self, slug: str, source: str, name: str = "") -> dict[str, Any]:
        """`source` is a path inside the server's `incoming` directory."""
        return self._object("POST", f"/projects/{slug}/imports", {"source": source, "name": name})

    def import_(self, slug: str, import_id: int) -> dict[str, Any]:
        return self._object("GET", f"/projects/{slug}/imports/{import_id}")

    def image(self, sha256: str) -> bytes:
        return self._send("GET", f"/images/{sha256}").content

    # Judging

    def next_task(self, slug: str) -> Claimed | None:
        """Claim the next task under a lease; None when there is nothing to do."""
        return next(iter(self.claims(slug)), None)

    def claims(self, slug: str, count: int = 1) -> list[Claimed]:
        """Hold up to `count` tasks, those held already included; asking again renews their leases."""
        said = self._object("POST", f"/projects/{slug}/claims", {"count": count})
        return [_claimed(one) for one in said["claims"]]

    def heartbeat(self, claimed: Claimed) -> bool:
        """Keep the lease; False when it is lost."""
        try:
            self._send("POST", f"/leases/{claimed.slot_id}/extend", {"lease_token": claimed.lease_token})
        except ApiRefused as refused:
            if refused.code == "lease_lost":
                return False
            raise
        return True

    def release(self, claimed: Claimed) -> bool:
        said = self._object("POST", f"/leases/{claimed.slot_id}/release", {"lease_token": claimed.lease_token})
        return bool(said["released"])

    def submit(
        self,
        slug: str,
        claimed: Claimed,
        answer: Iterable[str],
        rationale: str = "",
        *,
        seconds_spent: float | None = None,
        idempotency_key: str = "",
    ) -> dict[str, Any]:
        """Answer a claimed task. The lease's token is the key unless one is given: sending it twice answers once."""
        return self._object(
            "POST",
            f"/projects/{slug}/tasks/{claimed.task_id}/annotations",
            {
                "answer": sorted(answer),
                "rationale": rationale,
                "idempotency_key": idempotency_key or claimed.lease_token,
                "seconds_spent": seconds_spent,
            },
        )

    def withdraw(self, slug: str, annotation_id: int) -> Claimed:
        """Undo your last answer; you hold its task again."""
        return _claimed(self._object("POST", f"/projects/{slug}/annotations/{annotation_id}/withdraw"))

    def flag(self, slug: str, task_id: int, reason: str, note: str = "", *, skip: bool = False) -> dict[str, Any]:
        """Say that something is wrong with a task; with `skip` instead of answering it."""
        said = {"reason": reason, "note": note, "skip": skip}
        return self._object("POST", f"/projects/{slug}/tasks/{task_id}/flags", said)

    def review(self, slug: str, task_id: int, verdict: str, **said: object) -> dict[str, Any]:
        """Accept, correct or reject what stands for a task; `said`: reason, answer, rationale …"""
        body = {"verdict": verdict, "idempotency_key": str(uuid.uuid4()), **said}
        return self._object("POST", f"/projects/{slug}/tasks/{task_id}/reviews", body)

    def tasks(self, slug: str, *, state: str = "", dimension: str = "", after: int = 0) -> dict[str, Any]:
        """One page: ``{"tasks": […], "next_after": id or None}``."""
        wanted = {"state": state, "dimension": dimension, "after": after}
        return self._object("GET", f"/projects/{slug}/tasks", params={k: v for k, v in wanted.items() if v})

    def task(self, slug: str, task_id: int) -> dict[str, Any]:
        return self._object("GET", f"/projects/{slug}/tasks/{task_id}")

    def disputed(self, slug: str, after: int = 0) -> list[dict[str, Any]]:
        return self._list("GET", f"/projects/{slug}/disputed", params={"after": after})

    def decide(self, slug: str, task_id: int, answer: Iterable[str], rationale: str = "") -> dict[str, Any]:
        decision = {"answer": sorted(answer), "rationale": rationale, "idempotency_key": str(uuid.uuid4())}
        return self._object("POST", f"/projects/{slug}/tasks/{task_id}/decision", decision)

    # Models

    def create_endpoint(self, name: str, base_url: str, model: str, **settings: object) -> dict[str, Any]:
        return self._object("POST", "/endpoints", {"name": name, "base_url": base_url, "model": model, **settings})

    def endpoint(self, name: str) -> dict[str, Any]:
        return self._object("GET", f"/endpoints/{name}")

    def change_endpoint(self, name: str, **fields: object) -> dict[str, Any]:
        return self._object("PATCH", f"/endpoints/{name}", fields)

    def start_endpoint_test(self, name: str) -> dict[str, Any]:
        return self._object("POST", f"/endpoints/{name}/tests")

    def estimate_run(self, slug: str, endpoint: str, approach: str, **wanted: object) -> dict[str, Any]:
        return self._object(
            "POST", f"/projects/{slug}/runs/estimate", {"endpoint": endpoint, "approach": approach, **wanted}
        )

    def start_run(self, slug: str, endpoint: str, approach: str, **wanted: object) -> dict[str, Any]:
        return self._object("POST", f"/projects/{slug}/runs", {"endpoint": endpoint, "approach": approach, **wanted})

    def approaches(self, slug: str, **asked: object) -> dict[str, Any]:
        """What each approach costs and achieves; `asked`: tasks, endpoint, quality, reference, measure."""
        return self._object("GET", f"/projects/{slug}/approaches", params=asked)

    def runs(self, slug: str) -> list[dict[str, Any]]:
        """The project's runs, the newest first."""
        return self._list("GET", f"/projects/{slug}/runs")

    def run(self, slug: str, run_id: int) -> dict[str, Any]:
        return self._object("GET", f"/projects/{slug}/runs/{run_id}")

    def pause_run(self, slug: str, run_id: int) -> dict[str, Any]:
        return self._object("POST", f"/projects/{slug}/runs/{run_id}/pause")

    def resume_run(self, slug: str, run_id: int, **budgets: object) -> dict[str, Any]:
        """`budgets`: budget_usd, budget_calls; what is left out stays as it is."""
        return self._object("POST", f"/projects/{slug}/runs/{run_id}/resume", budgets)

    def cancel_run(self, slug: str, run_id: int) -> dict[str, Any]:
        return self._object("POST", f"/projects/{slug}/runs/{run_id}/cancel")

    def wait_for_run(self, slug: str, run_id: int, *, timeout: float = 600.0) -> dict[str, Any]:
        """The run once it has ended or paused."""
        until = time.monotonic() + timeout
        while (said := self.run(slug, run_id))["state"] in ("preparing", "waiting", "running"):
            _pause(until, f"run {run_id}")
        return said

    # Versions

    def freeze(self, slug: str, name: str) -> dict[str, Any]:
        return self._object("POST", f"/projects/{slug}/versions", {"name": name})

    def version(self, slug: str, version_pk: int) -> dict[str, Any]:
        return self._object("GET", f"/projects/{slug}/versions/{version_pk}")

    def export(self, slug: str, version_pk: int) -> dict[str, Any]:
        return self._object("POST", f"/projects/{slug}/versions/{version_pk}/exports")

    def get_export(self, slug: str, export_id: int) -> dict[str, Any]:
        return self._object("GET", f"/projects/{slug}/exports/{export_id}")

    # Jobs

    def job(self, job_id: int) -> dict[str, Any]:
        return self._object("GET", f"/jobs/{job_id}")

    def wait_for_job(self, job_id: int, *, timeout: float = 600.0) -> dict[str, Any]:
        """The job once it has ended; its state and error say how."""
        until = time.monotonic() + timeout
        while (said := self.job(job_id))["state"] in ("queued", "running"):
            _pause(until, f"job {job_id}")
        return said

    def _object(
        self, method: str, path: str, payload: object = None, *, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        said: dict[str, Any] = self._send(method, path, payload, params=params).json()
        return said

    def _list(
        self, method: str, path: str, payload: object = None, *, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = self._send(method, path, payload, params=params).json()
        return said

    def _send(
        self, method: str, path: str, payload: object = None, *, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        response = self._http.request(method, path, json=payload, params=params)
        if response.is_success:
            return response
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            # Not our server's shape: a proxy in between, or another server altogether.
            raise ApiRefused(response.status_code, "not_winnow", f"unexpected answer {response.status_code}") from None
        raise ApiRefused(response.status_code, error["code"], error["message"], error.get("field", ""))


def _pause(until: float, what: str) -> None:
    if time.monotonic() > until:
        raise TookTooLong(f"{what} had not ended in time")
    time.sleep(0.2)
