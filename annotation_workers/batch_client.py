"""An endpoint's Batch API: files go up, batches are made, looked at, looked for and cancelled, results come down.

Each method makes one request (the library's hidden retries are off) and raises BatchFailure, which says what that
means. Files are streamed both ways, from and to the disk. Not here: when (batches.py), single calls (model_client.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import IO, Final, Self

import httpx2
import openai
from openai.types import Batch

from annotation_server.runs.batches import RemoteBatch
from annotation_server.runs.models import Endpoint
from annotation_workers.model_client import Means, api_key, classify_status, error_message, retry_after

URL: Final = "/v1/chat/completions"
"""What each request of a batch asks for, as the API names it."""
METADATA = "winnow_batch"
_WINDOW: Final = "24h"
_CLOCKS_DIFFER = timedelta(hours=1)
PER_PAGE = 100
_PIECE = 1 << 16
_TRANSFER = httpx2.Timeout(600.0, connect=10.0)
"""An endpoint may look through a whole file before it says that it has it."""


class BatchFailure(Exception):
    """A request about a batch that failed; the message is one line."""

    def __init__(
        self, means: Means, detail: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.means = means
        self.status = status
        self.retry_after = retry_after


class BatchClient:
    """One endpoint: `with BatchClient(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._key = api_key(endpoint)
        self._where = f"{endpoint.name} ({endpoint.base_url})"
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            # A local server wants no key, the library wants some text.
            api_key=self._key or "none",
            max_retries=0,
            timeout=float(endpoint.timeout_seconds),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def upload(self, name: str, file: IO[bytes]) -> str:
        """A file of requests, by its id there."""
        with self._explained():
            made = self._client.files.create(
                # An open file is sent piece by piece; a path would be read into memory first.
                file=(name, file, "application/jsonl"),
                purpose="batch",
                timeout=_TRANSFER,
            )
            if not getattr(made, "id", ""):
                raise self._no_answer("a file")
            return made.id

    def create(self, file_id: str, key: str) -> RemoteBatch:
        """Make a batch of a file. It may exist even where this fails, unless the failure says otherwise."""
        with self._explained():
            made = self._client.batches.create(
                input_file_id=file_id, endpoint=URL, completion_window=_WINDOW, metadata={METADATA: key}
            )
            return self._told(made)

    def find(self, key: str, file_id: str, since: datetime) -> RemoteBatch | None:
        """The batch that was made with this key or of this file, and has not failed; the oldest, were there several."""
        found: list[RemoteBatch] = []
        with self._explained():
            page = self._client.batches.list(limit=PER_PAGE)
            while True:
                listed = getattr(page, "data", None)
                if not isinstance(listed, list):
                    # Anything but a list proves nothing: taken for an empty one, it would mean a second batch.
                    raise self._no_answer("a list of batches")
                batches = [self._told(batch) for batch in listed]
                found += [told for told in batches if told.key == key or told.file_id == file_id]
                too_old = all(told.created_at < since - _CLOCKS_DIFFER for told in batches)
                if too_old or not page.has_next_page():
                    break
                page = page.get_next_page()
        return min((told for told in found if told.status != "failed"), key=lambda told: told.created_at, default=None)

    def retrieve(self, batch_id: str) -> RemoteBatch:
        """How far it is."""
        with self._explained():
            return self._told(self._client.batches.retrieve(batch_id))

    def cancel(self, batch_id: str) -> None:
        """End it; what is answered by then can be fetched once it says so."""
        with self._explained():
            self._client.batches.cancel(batch_id)

    def download(self, file_id: str, to: IO[bytes]) -> None:
        """A file's content, piece by piece."""
        with (
            self._explained(),
            self._client.files.with_streaming_response.content(file_id, timeout=_TRANSFER) as response,
        ):
            for piece in response.iter_bytes(_PIECE):
                to.write(piece)

    def _told(self, batch: Batch) -> RemoteBatch:
        # The library checks nothing of what it is sent: another server's page comes as a str, a missing field as None.
        told: object = batch
        if not isinstance(told, Batch) or not told.id or not told.created_at:
            raise self._no_answer("a batch")
        counts = batch.request_counts
        errors = batch.errors.data if batch.errors else None
        first = errors[0] if errors else None
        return RemoteBatch(
            batch_id=batch.id,
            file_id=batch.input_file_id or "",
            key=(batch.metadata or {}).get(METADATA, ""),
            status=str(batch.status),
            answered=counts.completed if counts else 0,
            failed=counts.failed if counts else 0,
            created_at=datetime.fromtimestamp(batch.created_at, UTC),
            expires_at=datetime.fromtimestamp(batch.expires_at, UTC) if batch.expires_at else None,
            output_file_id=batch.output_file_id or "",
            error_file_id=batch.error_file_id or "",
            error_code=(first.code or "") if first else "",
            error=self.without_key((first.message or "") if first else ""),
        )

    def _no_answer(self, what: str) -> BatchFailure:
        return BatchFailure(Means.UNKNOWN, f"{self._where} answered with something that is not {what}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except openai.APIStatusError as error:
            said = error_message(self.without_key(_text(error.response)))
            means, _ = classify_status(error.status_code, f"{error.code or ''} {error.type or ''} {said}".lower())
            raise BatchFailure(
                means,
                f"{self._where} answered {error.status_code}: {said}",
                status=error.status_code,
                retry_after=retry_after(error.response.headers.get("retry-after")),
            ) from None
        except openai.APIConnectionError as error:
            raise self._connection_failure(error.__cause__ or error) from None
        except httpx2.HTTPError as error:  # while a file was being read
            raise self._connection_failure(error) from None
        except (AttributeError, TypeError, ValueError) as error:
            # A proxy's page with status 200: the library takes it for what it had asked for, and trips over it.
            raise self._no_answer("JSON as the API has it") from error
        except openai.OpenAIError as error:
            raise BatchFailure(Means.UNKNOWN, self.without_key(f"{self._where}: {error}")) from None

    def _connection_failure(self, cause: BaseException) -> BatchFailure:
        what = self.without_key(str(cause) or type(cause).__name__)
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
            return BatchFailure(Means.UNREACHABLE, f"{self._where} cannot be reached: {what}")
        return BatchFailure(Means.UNKNOWN, f"{self._where} broke the connection: {what}")

    def without_key(self, text: str) -> str:
        """Some servers repeat a key they refuse; keys are never stored or logged."""
        return text.replace(self._key, "[key]") if self._key else text


def _text(response: httpx2.Response) -> str:
    try:
        return response.text[:2000]
    except httpx2.ResponseNotRead:
        return response.read().decode("utf-8", "replace")[:2000]
