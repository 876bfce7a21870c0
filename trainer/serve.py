"""Serves a screener over the OpenAI chat protocol: POST /v1/chat/completions, GET /v1/models, GET /healthz.

Handler threads read requests; one thread decodes: it takes what has come in within a few milliseconds and writes all
of it together, and each request is answered as soon as its own completions are done. Requests that come while a batch
is being decoded wait for the next one. Loopback by default. Not here: reading a request (chat.py), decoding
(rollout.py).
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from trainer.chat import ApiError, ChatRequest, ChatRow, Limits, chat_row, cut_at_stop, read_request
from trainer.config import ConfigRefused, require
from trainer.data import batch_rows
from trainer.model import Screener, load_screener
from trainer.rollout import Wanted, Written, choose_threads, write_completions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, where, and how much at once."""

    model_dir: Path
    """The model directory to serve."""
    host: str = "127.0.0.1"
    """Address to listen at. Loopback: reachable from this machine only."""
    port: int = 8100
    """Port to listen at; 0 takes a free one, which is printed."""
    name: str = ""
    """The model's name in the protocol; empty takes the directory's."""
    key_env: str = ""
    """Environment variable with the key that requests must bear; empty asks for none."""
    max_completion_tokens: int = 512
    """Longest completion; requests may ask for less."""
    max_batch: int = 64
    """Completions decoded together."""
    batch_wait_ms: float = 4.0
    """How long a batch waits for company once it has one request."""
    max_waiting: int = 256
    """Requests that may wait; further ones get 429."""
    max_images: int = 16
    """Images per request."""
    max_image_pixels: int = 40_000_000
    """Width times height of an image."""
    max_body_mb: int = 64
    """Size of a request."""
    image_max_side: int | None = None
    """Longest image side in pixels, as it was in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to compute in."""
    threads: int = 0
    """Computing threads of torch; 0 takes one for a small model on a CPU, else torch's choice."""

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port: expected 0 to 65535, got {self.port}")
        for name in (
            "max_completion_tokens",
            "max_batch",
            "max_waiting",
            "max_images",
            "max_image_pixels",
            "max_body_mb",
        ):
            require(getattr(self, name) >= 1, f"{name}: expected 1 or more, got {getattr(self, name)}")
        require(self.batch_wait_ms >= 0, f"batch_wait_ms: expected 0 or more, got {self.batch_wait_ms:g}")
        require(self.threads >= 0, f"threads: expected 0 or more, got {self.threads}")

    def key(self) -> str | None:
        """The key that requests must bear. ConfigRefused when its variable is named and not set."""
        if not self.key_env:
            return None
        if not (key := os.environ.get(self.key_env)):
            raise ConfigRefused(f"key_env: the environment variable {self.key_env} is not set")
        return key


def main(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way and return."""
    server = make_server(config)

    def stop(*_: object) -> None:
        # shutdown waits for the loop that this very thread runs: another thread has to ask.
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    host, port = server.server_address[:2]
    print(f"serving {server.name} at http://{host!s}:{port}/v1", flush=True)
    server.run()


def make_server(config: ServeConfig) -> Server:
    """A server that listens and does not answer yet. ModelRefused, or ConfigRefused where the port is taken."""
    screener = load_screener(config.model_dir, config.device, config.dtype)
    choose_threads(screener, config.threads)
    try:
        return Server(config, screener)
    except OSError as error:
        raise ConfigRefused(f"port: cannot listen at {config.host}:{config.port} ({error.strerror})") from None


@dataclass(slots=True)
class _Job:
    """A request on its way through the decoding thread."""

    request: ChatRequest
    row: ChatRow
    written: dict[int, Written] = field(default_factory=dict)
    """By choice."""
    failed: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """The one thread that decodes."""

    def __init__(self, screener: Screener, max_batch: int, wait_seconds: float, max_waiting: int) -> None:
        self._screener, self._max_batch, self._wait = screener, max_batch, wait_seconds
        self._waiting: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._stopping = False

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    def stop(self) -> None:
        """Decode what is waiting, then end."""
        self._stopping = True
        self._waiting.put(None)
        self._thread.join()

    def submit(self, job: _Job) -> None:
        """Let a request wait for its batch. ApiError 429 when too many wait, 503 when the server is stopping."""
        if self._stopping:
            raise ApiError(503, "the server is stopping", "stopping")
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise ApiError(429, "too many requests are waiting", "overloaded") from None

    def _run(self) -> None:
        left_over: _Job | None = None
        while (first := left_over or self._waiting.get()) is not None:
            batch, left_over, stopping = self._gather(first)
            try:
                self._decode(batch)
            except Exception:
                # The end of the thread would leave every later request hanging: these fail, the next ones may not.
                logger.exception("a batch of %d requests failed", len(batch))
                for job in batch:
                    job.failed = len(job.written) < job.request.n
                    job.done.set()
            if stopping:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], _Job | None, bool]:
        """A batch that begins with `first`, the request that no longer fitted, and whether to end afterwards."""
        batch, size = [first], first.request.n
        until = time.monotonic() + self._wait
        while size < self._max_batch:
            try:
                job = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return batch, None, True
            if size + job.request.n > self._max_batch:
                return batch, job, False
            batch.append(job)
            size += job.request.n
        return batch, None, False

    def _decode(self, batch: Sequence[_Job]) -> None:
        heads = batch_rows(
            self._screener,
            [job.row.token_ids for job in batch],
            [job.row.positions for job in batch],
            [job.row.images for job in batch],
        )
        owners = [(job, choice) for job in batch for choice in range(job.request.n)]

        def hand_over(index: int, written: Written) -> None:
            job, choice = owners[index]
            job.written[choice] = written
            if len(job.written) == job.request.n:
                job.done.set()

        wanted = [
            [
                Wanted([], replace(job.request.sampling, seed=job.request.sampling.seed * 1009 + choice))
                for choice in range(job.request.n)
            ]
            for job in batch
        ]
        write_completions(self._screener, heads, wanted, hand_over)


class Server(ThreadingHTTPServer):
    """HTTP around a batcher."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, config: ServeConfig, screener: Screener) -> None:
        self.config, self.screener = config, screener
        self.key = config.key()
        self.name = config.name or config.model_dir.resolve().name
        self.created = int(time.time())
        self.limits = Limits(
            max_completion_tokens=config.max_completion_tokens,
            max_choices=config.max_batch,
            max_images=config.max_images,
            max_image_pixels=config.max_image_pixels,
        )
        self.batcher = Batcher(screener, config.max_batch, config.batch_wait_ms / 1000, config.max_waiting)
        # The tokenizer's Rust core refuses to be used by two threads at once.
        self.tokenizing = threading.Lock()
        self.under_way = 0
        self.changed = threading.Condition()
        super().__init__((config.host, config.port), _Handler)

    def run(self) -> None:
        """Answer until shutdown is asked for; requests under way are finished first."""
        self.batcher.start()
        try:
            self.serve_forever(poll_interval=0.1)
        finally:
            self.batcher.stop()
            with self.changed:
                # Answers are written by daemon threads, which would die with the process.
                self.changed.wait_for(lambda: self.under_way == 0, timeout=5)
            self.server_close()

    def complete(self, body: object) -> dict[str, Any]:
        """The chat completion that answers a decoded JSON body. Raises ApiError."""
        request = read_request(body, self.limits)
        if request.model != self.name:
            raise ApiError(
                404, f"there is no model {request.model!r} here: it is {self.name!r}", "model_not_found", "model"
            )
        with self.tokenizing:
            row = chat_row(self.screener, request, self.config.image_max_side)
        room = int(self.screener.model.config.text_config.max_position_embeddings)
        prompt, completion = len(row.token_ids), request.sampling.max_new_tokens
        if prompt + completion > room:
            message = f"{prompt} prompt tokens and {completion} to write are more than {room}"
            raise ApiError(400, message, "context_length_exceeded", "messages")
        job = _Job(request, row)
        self.batcher.submit(job)
        job.done.wait()
        if job.failed:
            raise ApiError(500, "the model failed on this batch; the server's log says why", "internal_error")
        return self._completion(job)

    def _completion(self, job: _Job) -> dict[str, Any]:
        choices = []
        for choice in range(job.request.n):
            written = job.written[choice]
            text, stopped = cut_at_stop(written.text, job.request.stop)
            reason = "stop" if stopped or written.finished else "length"
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append({"index": choice, "message": message, "logprobs": None, "finish_reason": reason})
        prompt = len(job.row.token_ids)
        completion = sum(len(written.token_ids) for written in job.written.values())
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours; anything else is logged."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            logger.exception("a request from %s failed", client_address[0])


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; together with delayed ACKs each would wait 40 ms
    timeout = 60

    def do_GET(self) -> None:
        model = {"id": self.server.name, "object": "model", "created": self.server.created, "owned_by": "winnow"}
        match self.path.partition("?")[0]:
            case "/healthz":
                self._reply(200, {"status": "ok", "model": self.server.name})
            case "/v1/models":
                self._reply(200, {"object": "list", "data": [model]})
            case path if path == f"/v1/models/{self.server.name}":
                self._reply(200, model)
            case path:
                self._refuse(ApiError(404, f"there is nothing at {path}", "not_found"))

    def do_POST(self) -> None:
        self._count(+1)
        try:
            self._answer()
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self.server.changed:
            self.server.under_way += change
            self.server.changed.notify_all()

    def _answer(self) -> None:
        try:
            body = self._read_body()
            if self.path.partition("?")[0] != "/v1/chat/completions":
                raise ApiError(404, f"there is nothing at {self.path}", "not_found")
            if self.server.key and not hmac.compare_digest(
                self.headers.get("Authorization", "").encode(), f"Bearer {self.server.key}".encode()
            ):
                raise ApiError(401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")
            try:
                given = json.loads(body)
            except ValueError as error:
                raise ApiError(400, f"the body is not JSON ({error})", "invalid_body") from None
            self._reply(200, self.server.complete(given))
        except ApiError as error:
            self._refuse(error)

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise ApiError(411, "a Content-Length is needed", "invalid_body")
        if int(length) > self.server.config.max_body_mb << 20:
            self.close_connection = True  # what was not read would be taken for the next request
            raise ApiError(413, f"a request may have {self.server.config.max_body_mb} MB", "too_large")
        return self.rfile.read(int(length))

    def _refuse(self, error: ApiError) -> None:
        self._reply(error.status, error.to_json())

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged at debug level only: a run of annotation makes thousands."""
        logger.debug("%s " + format, self.address_string(), *args)
