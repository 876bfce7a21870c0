"""A model endpoint over real HTTP, in its own process, that misbehaves on demand and counts what it charges.

`python fake_endpoint.py` prints its port. `POST /control` takes {"mode": …, "script": […], "delay": …}: the script's
modes answer one request each, then the mode answers the rest. `limit`: [calls, seconds] turns away what comes faster,
within any window. `can`: the features it has; it ignores the others with a 200, or refuses them where `refuses` is
true. `cached`: of its input tokens, how many come from a cache. `fetches`: it gets images by their address.
`/v1/files` and `/v1/batches` work as well: `batch_mode` and `batch_script` say how a batch goes (BATCH_MODES),
`batch_delay` how long it takes; each of its requests is answered by the modes above, and charged when the batch is
made, less what a cancellation spared. `api_script`: modes that answer requests about batches. `page_for_content`: a
page instead of a file. `kill`: {"pid": …, "at": "uploaded" | "created" | "retrieved" | "content"} kills a process
once, when what it asked for has been done and before it learns so.
`GET /charges` says per X-Request-ID how often it was called and what was charged for it, and when calls came.
Not here: any import of Winnow; this is the other side of the wire.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import struct
import threading
import time
import urllib.request
import zlib
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

INPUT_TOKENS = 1000
OUTPUT_TOKENS = 50

# What a mode says instead of a good completion, with status 200 and a charge.
COMPLETIONS = {
    "malformed": "The second one looks best to me.",
    "no_rationale": "<think></think><answer>{answer}</answer>",
    "truncated": "<think>Candidate A stands on the ground and",
    "nasty": (
        "<think>\x00</script><img src=x onerror=alert(1)>\ud800\u202e A stands in the light; B floats.</think>"
        "<answer>{answer}</answer>"
    ),
    "leak": (
        "<think>A stands on the ground; B floats above it. Since the answer is {answer}, the others cast no shadow."
        "</think><answer>{answer}</answer>"
    ),
    "parrot": (
        "<think>A stands on the ground; B floats above it. I write the reasoning that leads there from what is visible."
        "</think><answer>{answer}</answer>"
    ),
    "empty_talk": (
        "<think>I looked at all of them with great care and compared them as well as I could.</think>"
        "<answer>{answer}</answer>"
    ),
    "too_long": "<think>" + "A stands on the ground and casts a shadow. " * 100 + "</think><answer>{answer}</answer>",
    "too_short": "<think>B has no shadow.</think><answer>{answer}</answer>",
    "copy": (
        "<think>A casts a soft shadow to the left, B has none at all under its round foot, C hides its own behind "
        "itself.</think><answer>{answer}</answer>"
    ),
    "hostile": "<think>A casts a shadow. {hostile}</think><answer>{answer}</answer>",
    "hostile_refused": (
        "<think>A casts a shadow, B none. A: </script><img src=x onerror=pwned()>\u202e, flawed.</think>"
        "<answer>{answer}</answer>"
    ),
    "empty": "",
}
HOSTILE = "\x00</script><img src=x onerror=pwned()>\u202e\ud800" + "x" * 100_000
# Status, code and message of the modes that answer with an error and charge nothing.
ERRORS = {
    "rate_limit": (429, "rate_limit_exceeded", "slow down"),
    "overloaded": (503, "overloaded", "come back later"),
    "error": (500, "server_error", "something broke"),
    "unauthorised": (401, "invalid_api_key", "Incorrect API key provided: {key}"),
    "not_found": (404, "model_not_found", "there is no such model"),
    "context_length": (400, "context_length_exceeded", "maximum context length is 4096 tokens"),
    "bad_request": (400, "invalid_request", "unknown parameter"),
    "unsupported": (400, "unsupported_parameter", "this is not supported"),
    "filtered": (400, "content_filter", "the prompt was filtered"),
}


BATCH_MODES = {
    "good": "every request answered, in order",
    "disorder": "the lines of the results in reverse",
    "duplicates": "every line of the results twice",
    "foreign": "beside the results, a line for a request that nobody made, and one that is no JSON",
    "missing": "every other request has no line anywhere",
    "half_expired": "every other request expired unanswered",
    "expired": "all of them",
    "failed": "the file is refused when it is looked through",
    "queue_full": "too many tokens wait already",
}
BATCH_SECONDS = 24 * 3600


class State:
    """What the endpoint is told to do, and what it did."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.mode = "good"
        self.script: deque[str] = deque()
        self.delay = 0.0
        self.retry_after: str | None = None
        self.charges: dict[str, dict[str, int]] = {}
        self.now = 0
        self.most_at_once = 0
        self.limit: list[float] | None = None
        self.let_in: deque[float] = deque()
        self.turned_away = 0
        self.called_at: list[float] = []
        self.can = ["data_uri", "image_url", "json_schema", "logprobs", "choices", "batches"]
        self.refuses = False
        self.fetches = False
        self.cached = 0
        self.last_request: dict[str, Any] = {}
        self.last_answer = "A"
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_mode = "good"
        self.batch_script: deque[str] = deque()
        self.batch_delay = 0.0
        self.api_script: deque[str] = deque()
        self.page_for_content = False
        self.kill: dict[str, Any] = {}

    def next_mode(self) -> str:
        with self.lock:
            return self.script.popleft() if self.script else self.mode

    def lets_in(self) -> bool:
        """A window that slides: the strictest way to count."""
        with self.lock:
            if self.limit is None:
                return True
            now = time.monotonic()
            while self.let_in and self.let_in[0] <= now - self.limit[1]:
                self.let_in.popleft()
            if len(self.let_in) >= self.limit[0]:
                self.turned_away += 1
                return False
            self.let_in.append(now)
            return True

    def called(self, request_id: str) -> None:
        with self.lock:
            self.called_at.append(time.time())
            self.charges.setdefault(request_id, {"calls": 0, "input_tokens": 0, "output_tokens": 0})["calls"] += 1

    def charge(self, request_id: str) -> None:
        with self.lock:
            self.charges[request_id]["input_tokens"] += INPUT_TOKENS
            self.charges[request_id]["output_tokens"] += OUTPUT_TOKENS


STATE = State()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith("/v1/"):
            self.get(path.removeprefix("/v1/").split("/"), dict(parse_qsl(query)))
            return
        with STATE.lock:
            seen = {
                "charges": STATE.charges,
                "most_at_once": STATE.most_at_once,
                "last_request": STATE.last_request,
                "called_at": STATE.called_at,
                "turned_away": STATE.turned_away,
                "batches": [shown(batch) for batch in STATE.batches.values()],
                "files": {name: len(content) for name, content in STATE.files.items()},
            }
        self.send(200, seen)

    def do_POST(self) -> None:
        sent = self.read()
        if self.path == "/v1/files":
            self.upload(sent)
            return
        body = json.loads(sent or b"{}")
        if self.path == "/control":
            self.control(body)
        elif self.path.startswith("/v1/batches"):
            self.post_batches(self.path.removeprefix("/v1/").split("/"), body)
        else:
            with STATE.lock:
                STATE.now += 1
                STATE.most_at_once = max(STATE.most_at_once, STATE.now)
                STATE.last_request = body
            try:
                self.complete(body)
            finally:
                with STATE.lock:
                    STATE.now -= 1

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def get(self, path: list[str], asked: dict[str, str]) -> None:
        if STATE.api_script and STATE.api_script.popleft() == "html":
            self.send_text("<html><body>Welcome to the proxy</body></html>", "text/html")
            return
        if STATE.page_for_content and path[-1] == "content":
            self.send_text("<html>\n<body>Please sign in</body>\n</html>", "text/html")
            return
        match path:
            case ["batches", *_] if "batches" not in STATE.can:
                self.send(404, {"error": {"message": "Not Found"}})
            case ["batches"] if STATE.mode in ERRORS:
                status, code, message = ERRORS[STATE.mode]
                self.send(status, {"error": {"code": code, "message": message.format(key="")}})
            case ["batches"]:
                with STATE.lock:
                    newest = [shown(batch) for batch in reversed(STATE.batches.values())]
                ids = [batch["id"] for batch in newest]
                start = ids.index(asked["after"]) + 1 if "after" in asked else 0
                end = start + int(asked.get("limit", 20))
                self.send(200, {"object": "list", "data": newest[start:end], "has_more": end < len(newest)})
            case ["batches", name] if name in STATE.batches:
                with STATE.lock:
                    now = shown(STATE.batches[name])
                self.killing("retrieved")
                self.send(200, now)
            case ["files", name, "content"] if name in STATE.files:
                content = STATE.files[name]
                if STATE.kill.get("at") == "content":
                    # Half of it arrives, so that the caller dies while it reads.
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2])
                    self.killing("content")
                    self.close_connection = True
                    return
                self.send_text(content.decode(), "application/octet-stream")
            case _:
                self.send(404, {"error": {"message": f"no such thing: {self.path}"}})

    def upload(self, sent: bytes) -> None:
        if "batches" not in STATE.can:
            self.send(404, {"error": {"message": "Not Found"}})
            return
        boundary = re.search(r"boundary=(\S+)", self.headers["Content-Type"]).group(1).strip('"')  # type: ignore[union-attr]
        parts = [part.partition(b"\r\n\r\n") for part in sent.split(b"--" + boundary.encode())]
        content = next(body for head, _, body in parts if b'name="file"' in head).removesuffix(b"\r\n")
        with STATE.lock:
            name = f"file-{len(STATE.files) + 1}"
            STATE.files[name] = content
        self.killing("uploaded")
        self.send(200, {"id": name, "object": "file", "bytes": len(content), "purpose": "batch", "created_at": 0})

    def post_batches(self, path: list[str], body: dict[str, Any]) -> None:
        if STATE.api_script:
            status, code, message = ERRORS[STATE.api_script.popleft()]
            self.send(status, {"error": {"code": code, "message": message.format(key="")}}, STATE.retry_after)
            return
        match path:
            case ["batches"]:
                with STATE.lock:
                    batch = new_batch(body)
                    STATE.batches[batch["id"]] = batch
                charge_batch(batch)
                self.killing("created")
                self.send(200, shown(batch))
            case ["batches", name, "cancel"] if name in STATE.batches:
                with STATE.lock:
                    cancel_batch(STATE.batches[name])
                self.send(200, shown(STATE.batches[name]))
            case _:
                self.send(404, {"error": {"message": f"no such thing: {self.path}"}})

    def killing(self, moment: str) -> None:
        with STATE.lock:
            told, STATE.kill = (STATE.kill, {}) if STATE.kill.get("at") == moment else ({}, STATE.kill)
        if told:
            os.kill(told["pid"], signal.SIGKILL)

    def control(self, body: dict[str, Any]) -> None:
        with STATE.lock:
            if body.get("reset"):
                STATE.reset()
            STATE.mode = body.get("mode", STATE.mode)
            STATE.script = deque(body.get("script", STATE.script))
            STATE.delay = body.get("delay", STATE.delay)
            STATE.retry_after = body.get("retry_after", STATE.retry_after)
            STATE.api_script = deque(body.get("api_script", STATE.api_script))
            STATE.batch_script = deque(body.get("batch_script", STATE.batch_script))
            for name in (
                "limit",
                "can",
                "refuses",
                "fetches",
                "cached",
                "batch_mode",
                "batch_delay",
                "kill",
                "page_for_content",
            ):
                setattr(STATE, name, body.get(name, getattr(STATE, name)))
        self.send(200, {})

    def complete(self, body: dict[str, Any]) -> None:
        request_id = self.headers["X-Request-ID"]
        STATE.called(request_id)
        mode = STATE.next_mode() if STATE.lets_in() else "rate_limit"
        missing = [feature for feature in asked_for(body) if feature not in STATE.can]
        if missing and STATE.refuses:
            mode = "unsupported"
        if mode in ERRORS:
            status, code, message = ERRORS[mode]
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self.send(status, {"error": {"code": code, "message": message.format(key=key)}}, STATE.retry_after)
            return
        # Charged from here on, whether the caller lives to read the answer or not.
        STATE.charge(request_id)
        time.sleep(STATE.delay)
        match mode:
            case "html":
                self.send_text("<html><body>Welcome to the proxy</body></html>", "text/html")
            case "plain":
                self.send_text("ok", "text/plain")
            case "wrong_json":
                self.send(200, {"hello": "world"})
            case "cut":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            case "refusal":
                self.send(200, completion(None, refusal="I cannot help with that.") | {"id": request_id})
            case "twice":
                # A proxy that delivers an answer again: the copy lies in the connection when the next request comes.
                answer = whole_completion(mode, body) | {"id": request_id}
                self.send(200, answer)
                time.sleep(0.05)  # so that the first is read, and the connection given back, before the copy arrives
                self.send(200, answer)
            case _:
                self.send(200, whole_completion(mode, body) | {"id": request_id})

    def send(self, status: int, data: dict[str, Any], retry_after: str | None = None) -> None:
        payload = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(payload)

    def send_text(self, text: str, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def new_batch(body: dict[str, Any]) -> dict[str, Any]:
    """A batch of the API, and what it does not show: its mode, its results."""
    mode = STATE.batch_script.popleft() if STATE.batch_script else STATE.batch_mode
    assert mode in BATCH_MODES, mode
    now = int(time.time())
    return {
        "id": f"batch_{len(STATE.batches) + 1}",
        "object": "batch",
        "endpoint": body["endpoint"],
        "input_file_id": body["input_file_id"],
        "completion_window": body["completion_window"],
        "metadata": body.get("metadata"),
        "created_at": now,
        "expires_at": now + BATCH_SECONDS,
        "status": "validating",
        "errors": None,
        "output_file_id": None,
        "error_file_id": None,
        "_mode": mode,
        "_ready_at": time.monotonic() + STATE.batch_delay,
        "_good": [],
        "_bad": [],
    }


def charge_batch(batch: dict[str, Any]) -> None:
    """Answer each of its requests, and charge for it."""
    mode = batch["_mode"]
    requests = [json.loads(line) for line in STATE.files[batch["input_file_id"]].splitlines()]
    batch["_requests"] = len(requests)
    if mode in ("failed", "queue_full"):
        return
    for place, request in enumerate(requests):
        name = request["custom_id"]
        said = {"id": f"req-{place}", "custom_id": name, "response": None, "error": None}
        if mode == "expired" or (mode == "half_expired" and place % 2):
            why = {"code": "batch_expired", "message": "This request could not be executed before it expired."}
            batch["_bad"].append(said | {"error": why})
            continue
        STATE.called(name)
        STATE.last_request = request["body"]
        mode_of_request = STATE.next_mode()
        if mode_of_request in ERRORS:
            status, code, message = ERRORS[mode_of_request]
            error = {"error": {"code": code, "message": message.format(key="")}}
            batch["_bad"].append(said | {"response": {"status_code": status, "body": error}})
            continue
        STATE.charge(name)
        whole = (
            completion(None, refusal="I cannot help with that.")
            if mode_of_request == "refusal"
            else whole_completion(mode_of_request, request["body"])
        )
        if not (mode == "missing" and place % 2):
            batch["_good"].append(said | {"response": {"status_code": 200, "body": whole}})


def shown(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as it is by now."""
    if batch["status"] in ("validating", "in_progress"):
        done = time.monotonic() >= batch["_ready_at"]
        mode = batch["_mode"]
        if mode in ("failed", "queue_full"):
            code = "token_limit_exceeded" if mode == "queue_full" else "invalid_json_line"
            batch["status"] = "failed"
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": f"It is {mode}.", "line": 1}]}
        elif done:
            finish_batch(batch, "expired" if "expired" in mode else "completed")
        else:
            batch["status"] = "in_progress"
    counts = {
        "total": batch.get("_requests", 0),
        "completed": len(batch["_good"]) if batch["output_file_id"] else 0,
        "failed": len(batch["_bad"]) if batch["error_file_id"] else 0,
    }
    return {name: value for name, value in batch.items() if not name.startswith("_")} | {"request_counts": counts}


def finish_batch(batch: dict[str, Any], status: str) -> None:
    batch["status"] = status
    good = [json.dumps(line) for line in batch["_good"]]
    match batch["_mode"]:
        case "disorder":
            good.reverse()
        case "duplicates":
            good += good
        case "foreign":
            foreign = json.loads(good[0]) | {"custom_id": "3f0c6f0e-0000-4000-8000-000000000000"}
            good = [json.dumps(foreign), "{oops", *good]
    bad = [json.dumps(line) for line in batch["_bad"]]
    for name, lines in (("output_file_id", good), ("error_file_id", bad)):
        if lines:
            batch[name] = f"file-{len(STATE.files) + 1}"
            STATE.files[batch[name]] = "".join(f"{line}\n" for line in lines).encode()


def cancel_batch(batch: dict[str, Any]) -> None:
    """The second half of its requests is spared, and not charged."""
    if shown(batch)["status"] != "in_progress":
        return
    spared = batch["_good"][len(batch["_good"]) // 2 :]
    del batch["_good"][len(batch["_good"]) - len(spared) :]
    for line in spared:
        STATE.charges[line["custom_id"]] |= {"input_tokens": 0, "output_tokens": 0}
        why = {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."}
        batch["_bad"].append(line | {"response": None, "error": why})
    finish_batch(batch, "cancelled")


COLOURS = ("amber", "blue", "coral", "denim", "ecru", "fawn", "green", "hazel", "ivory", "jade", "khaki", "lilac")


def said(mode: str, body: dict[str, Any]) -> str:
    """A completion in the grammar: the answer the prompt gives, else A; another one in mode different.

    Whoever is to solve again blindly is convinced by the reasoning: they say what the last prompt gave.
    """
    parts = parts_of(body)
    question = parts[-1]["text"]
    if question == "Say hello.":
        return "Hello!"
    if question.startswith("Which colour"):
        url = parts[0].get("image_url", {}).get("url", "")
        return colour_of(url) if url.startswith("data:") and "data_uri" in STATE.can else "I see no picture."
    given = re.search(r"candidates are: (.+?)\. Write", question)
    if "Somebody reasoned: " in question:
        answer = STATE.last_answer
    else:
        answer = STATE.last_answer = given.group(1) if given else "A"
    match mode:
        case "different":
            answer = "none" if answer != "none" else "A"
        case "contradiction":
            listed = answer.split(",")
            verdicts = [f"{letter}: no shadow, {'flawed' if letter in listed else 'fine'}." for letter in "ABCD"]
            return f"<think>{' '.join(verdicts)}</think><answer>{answer}</answer>"
        case "own_words":
            colours = " ".join(random.choice(COLOURS) for _ in range(40))
            return f"<think>A casts a shadow on {colours}.</think><answer>{answer}</answer>"
    good = "<think>A stands on the ground; B floats above it.</think><answer>{answer}</answer>"
    return COMPLETIONS.get(mode, good).replace("{answer}", answer).replace("{hostile}", HOSTILE)


def asked_for(body: dict[str, Any]) -> list[str]:
    """Features that a request makes use of."""
    urls = [part["image_url"]["url"] for part in parts_of(body) if part["type"] == "image_url"]
    used = {
        "data_uri": any(url.startswith("data:") for url in urls),
        "image_url": any(not url.startswith("data:") for url in urls),
        "json_schema": body.get("response_format", {}).get("type") == "json_schema",
        "logprobs": bool(body.get("logprobs")),
        "choices": body.get("n", 1) > 1,
    }
    return [feature for feature, is_used in used.items() if is_used]


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    content = body["messages"][0]["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def whole_completion(mode: str, body: dict[str, Any]) -> dict[str, Any]:
    """A completion with what was asked for beside the text, as far as this endpoint can."""
    uses = [feature for feature in asked_for(body) if feature in STATE.can]
    text = said(mode, body)
    if "json_schema" in uses:
        text = in_schema(body["response_format"]["json_schema"]["schema"], text)
    whole = completion(text)
    if "choices" in uses:
        first = whole["choices"][0]
        whole["choices"] = [first | {"index": 0}]
        for index in range(1, body["n"]):
            other = completion(said(STATE.next_mode(), body))["choices"][0]
            whole["choices"].append(other | {"index": index})
    if "logprobs" in uses:
        tokens = [{"token": token, "logprob": -0.1} for token in re.findall(r"\w+|\W", text)]
        for choice in whole["choices"]:
            choice["logprobs"] = {"content": tokens}
    pictures = [part["image_url"]["url"] for part in parts_of(body) if part["type"] == "image_url"]
    if text in ("Red", "Blue", "I see no picture.") and not {"data_uri", "image_url"} & set(uses):
        # What it cannot see takes up nothing.
        whole["usage"]["prompt_tokens"] = 20
    if STATE.cached:
        whole["usage"]["prompt_tokens_details"] = {"cached_tokens": STATE.cached}
    if STATE.fetches:
        for url in pictures:
            urllib.request.urlopen(url).read()  # noqa: S310 - what the test itself sent
    return whole


def in_schema(schema: dict[str, Any], text: str) -> str:
    """What a constrained decoder would write: the answer in the schema's fields, or the only word it allows."""
    filled: dict[str, Any] = {}
    for name, wanted in schema["properties"].items():
        if name == "answer":
            found = re.search(r"<answer>(.*?)</answer>", text)
            letters = found.group(1) if found else ""
            filled[name] = [] if letters == "none" else letters.split(",")
        elif "enum" in wanted:
            filled[name] = wanted["enum"][0]
        else:
            filled[name] = re.sub(r"<answer>.*|</?think>", "", text)
    return json.dumps(filled)


def colour_of(url: str) -> str:
    """The name of the first pixel's colour, of a picture that is red or blue."""
    png = base64.b64decode(url.partition(",")[2])
    at = png.index(b"IDAT")
    row = zlib.decompress(png[at + 4 : at + 4 + struct.unpack(">I", png[at - 4 : at])[0]])
    return "Red" if row[1] > row[3] else "Blue"


def completion(text: str | None, refusal: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, "refusal": refusal},
            }
        ],
        "usage": {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the library's 5 turns callers away when many connect at once


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
