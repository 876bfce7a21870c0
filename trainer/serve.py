"""Serves a screener over the OpenAI chat protocol: POST /v1/chat/completions, GET /v1/models, GET /healthz.

Handler threads read requests and write answers, whole or as they are written; one thread decodes for all of them
(batcher.py): who comes while others are being answered joins them at one of the next tokens, and who hangs up leaves.
Loopback by default. Not here: reading a request (chat.py), decoding (rollout.py).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from transformers.convert_slow_tokenizer import bytes_to_unicode

from trainer.batcher import Batcher, Job, Piece
from trainer.chat import ApiError, Limits, chat_row, read_request
from trainer.checkpoint import find_model, run_settings
from trainer.config import ConfigRefused, require
from trainer.model import Screener, load_screener
from trainer.rollout import Likelihood, choose_threads

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.1
"""How often a handler looks whether its client is still there."""
_AS_JSON_ESCAPES = "backslashreplace"
"""Half a surrogate pair, which a request's names may hold, is no UTF-8: it goes back as it came, as ``\\ud83d``."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, where, and how much at once."""

    model_dir: Path
    """What to serve: a model directory, or a run's, whose model (or newest checkpoint) is taken."""
    host: str = "127.0.0.1"
    """Address to listen at. Loopback: reachable from this machine only."""
    port: int = 8100
    """Port to listen at; 0 takes a free one, which is printed."""
    name: str = ""
    """The model's name in the protocol; empty takes the directory's."""
    key_env: str = ""
    """Environment variable with the key that requests must bear; empty asks for none."""
    max_completion_tokens: int = 512
    """Longest completion, and that of requests that name none; who asks for more is refused."""
    max_batch: int = 64
    """Completions decoded together."""
    batch_wait_ms: float = 4.0
    """How long the first request waits for company where nobody is being answered; later ones join on the way."""
    max_waiting: int = 256
    """Requests that may wait; further ones get 429."""
    max_images: int = 16
    """Images per request."""
    max_image_pixels: int = 40_000_000
    """Width times height of an image."""
    max_body_mb: int = 64
    """Size of a request."""
    image_max_side: int | None = None
    """Longest image side in pixels, as it was in training; None takes that of the run directory, if any."""
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
    screener = load_screener(find_model(config.model_dir), config.device, config.dtype)
    choose_threads(screener, config.threads)
    try:
        return Server(config, screener)
    except OSError as error:
        raise ConfigRefused(f"port: cannot listen at {config.host}:{config.port} ({error.strerror})") from None


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
        self.image_max_side = config.image_max_side or run_settings(config.model_dir).get("image_max_side")
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

    def begin(self, body: object) -> Job:
        """The request in a decoded JSON body, on its way to be answered. Raises ApiError."""
        request = read_request(body, self.limits)
        if request.model != self.name:
            raise ApiError(
                404, f"there is no model {request.model!r} here: it is {self.name!r}", "model_not_found", "model"
            )
        with self.tokenizing:
            row = chat_row(self.screener, request, self.image_max_side)
        room = int(self.screener.model.config.text_config.max_position_embeddings)
        prompt, completion = len(row.token_ids), request.sampling.max_new_tokens
        if prompt < room < prompt + completion and not request.length_named:
            completion = room - prompt
            request = replace(request, sampling=replace(request.sampling, max_new_tokens=completion))
        if prompt + completion > room:
            message = f"{prompt} prompt tokens and {completion} to write are more than {room}"
            raise ApiError(400, message, "context_length_exceeded", "messages")
        job = Job(request, row)
        self.batcher.submit(job)
        return job

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours; anything else is logged."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            logger.exception("a request from %s failed", client_address[0])


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; together with delayed ACKs each would wait 40 ms
    timeout = 60
    _begun = False
    """Whether an answer is on its way: nothing else can be said then."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            if path.startswith("/v1/"):
                self._ask_for_key()
            self._get(path)
        except ApiError as error:
            self._refuse(error)

    def _get(self, path: str) -> None:
        model = {"id": self.server.name, "object": "model", "created": self.server.created, "owned_by": "winnow"}
        batcher = self.server.batcher
        match path:
            case "/healthz":
                busy = {"decoding": batcher.decoding, "waiting": batcher.waiting}
                self._reply(200, {"status": "ok", "model": self.server.name, **busy})
            case "/v1/models":
                self._reply(200, {"object": "list", "data": [model]})
            case _ if path == f"/v1/models/{self.server.name}":
                self._reply(200, model)
            case _:
                raise ApiError(404, f"there is nothing at {path}", "not_found")

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
        self._begun = False
        try:
            job = self.server.begin(self._read_request())
            with contextlib.closing(self._pieces(job)) as pieces:
                if job.request.stream:
                    self._stream(job, pieces)
                else:
                    self._reply(200, _completion(self.server, job, list(pieces)))
        except ApiError as error:
            self._refuse(error)
        except (ConnectionError, TimeoutError):
            # Half a request was read, or half an answer written: whatever came next would be taken for the rest of it.
            self.close_connection = True
            raise
        except Exception:
            logger.exception("a request failed")
            if self._begun:
                self.close_connection = True
            else:
                self._refuse(ApiError(500, "the server failed; its log says why", "internal_error"))

    def _read_request(self) -> object:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise ApiError(411, "a Content-Length is needed", "invalid_body")
        limit = self.server.config.max_body_mb << 20
        if int(length) > limit:
            # What is not read would be taken for the next request; who is still sending would not read our answer.
            self.close_connection = True
            for at in range(0, min(int(length), 4 * limit), 1 << 20):
                self.rfile.read(min(1 << 20, int(length) - at))
            raise ApiError(413, f"a request may have {self.server.config.max_body_mb} MB", "too_large")
        body = self.rfile.read(int(length))
        if self.path.partition("?")[0] != "/v1/chat/completions":
            raise ApiError(404, f"there is nothing at {self.path}", "not_found")
        self._ask_for_key()
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:  # the latter where brackets are nested by the thousand
            raise ApiError(400, f"the body is not JSON ({error})", "invalid_body") from None

    def _ask_for_key(self) -> None:
        if self.server.key and not hmac.compare_digest(
            self.headers.get("Authorization", "").encode(), f"Bearer {self.server.key}".encode()
        ):
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")

    def _pieces(self, job: Job) -> Generator[Piece, None, None]:
        """What the job says, until all its choices have ended. ConnectionAbortedError when nobody listens any more."""
        left = job.request.n
        try:
            while left:
                try:
                    piece = job.pieces.get(timeout=_SECONDS_BETWEEN_LOOKS)
                except queue.Empty:
                    if _hung_up(self.connection):
                        raise ConnectionAbortedError("the client hung up") from None
                    continue
                if piece is None:
                    raise ApiError(500, "the model failed on this batch; the server's log says why", "internal_error")
                left -= piece.finish_reason is not None
                yield piece
        finally:
            job.unwanted = left > 0

    def _stream(self, job: Job, pieces: Iterable[Piece]) -> None:
        """Server-sent events, one per piece. An error on the way is an event too: the status has been sent."""
        self._begun = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = {**_head(self.server, "chat.completion.chunk")}
        if job.request.include_usage:
            head["usage"] = None
        begun: set[int] = set()
        try:
            for piece in pieces:
                delta = {"content": piece.text} if piece.text else {}
                if piece.choice not in begun:
                    delta = {"role": "assistant", "content": piece.text}
                    begun.add(piece.choice)
                choice = {
                    "index": piece.choice,
                    "delta": delta,
                    "logprobs": _logprobs(self.server.screener, job, piece),
                    "finish_reason": piece.finish_reason,
                }
                self._send_event(json.dumps(head | {"choices": [choice]}, ensure_ascii=False))
            if job.request.include_usage:
                self._send_event(json.dumps(head | {"choices": [], "usage": _usage(job)}))
            self._send_event("[DONE]")
        except ApiError as error:
            self._send_event(json.dumps(error.to_json(), ensure_ascii=False))
        self.wfile.write(b"0\r\n\r\n")

    def _send_event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode(errors=_AS_JSON_ESCAPES)
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _refuse(self, error: ApiError) -> None:
        self._reply(error.status, error.to_json())

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body, ensure_ascii=False).encode(errors=_AS_JSON_ESCAPES)
        self._begun = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")  # or the client's next request would meet a closed door
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged at debug level only: a run of annotation makes thousands."""
        logger.debug("%s " + format, self.address_string(), *args)


def _hung_up(connection: socket.socket) -> bool:
    """Whether the other side has closed; what it has sent meanwhile stays to be read."""
    looking = select.poll()  # select knows no more than 1024 open files
    looking.register(connection, select.POLLIN)
    return bool(looking.poll(0)) and not connection.recv(1, socket.MSG_PEEK)


def _completion(server: Server, job: Job, pieces: list[Piece]) -> dict[str, Any]:
    """The whole answer; without a stream each choice is one piece."""
    choices = [
        {
            "index": piece.choice,
            "message": {"role": "assistant", "content": piece.text, "refusal": None},
            "logprobs": _logprobs(server.screener, job, piece),
            "finish_reason": piece.finish_reason,
        }
        for piece in sorted(pieces, key=lambda piece: piece.choice)
    ]
    return {**_head(server, "chat.completion"), "choices": choices, "usage": _usage(job)}


def _head(server: Server, kind: str) -> dict[str, Any]:
    identity = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": server.name}


def _usage(job: Job) -> dict[str, int]:
    prompt, completion = len(job.row.token_ids), job.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprobs(screener: Screener, job: Job, piece: Piece) -> dict[str, Any] | None:
    """The protocol's log-probabilities of a piece, None where they were not asked for."""
    if job.request.top_logprobs is None:
        return None
    return {"content": [_token(screener, token, found) for token, found in piece.tokens], "refusal": None}


def _token(screener: Screener, token_id: int, found: Likelihood) -> dict[str, Any]:
    alternatives = [_named(screener, other, logprob) for other, logprob in found.alternatives]
    return {**_named(screener, token_id, found.logprob), "top_logprobs": alternatives}


def _named(screener: Screener, token_id: int, logprob: float) -> dict[str, Any]:
    said = _token_bytes(screener, token_id)
    # JSON knows no infinity: the protocol says -9999 for what cannot be.
    return {"token": said.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(said)}


def _token_bytes(screener: Screener, token_id: int) -> bytes:
    """What a token stands for; it may be a part of a character. All models read here write bytes as GPT-2 does."""
    name: str | None = screener.tokenizer.convert_ids_to_tokens(token_id)
    if name is None:
        return b""  # the vocabulary is filled up to a round number
    if token_id in screener.tokenizer.added_tokens_decoder:
        return name.encode()
    bytes_by_letter = _bytes_by_letter()
    return bytes(bytes_by_letter[letter] for letter in name)


@lru_cache(maxsize=1)
def _bytes_by_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in bytes_to_unicode().items()}
