"""A model endpoint over real HTTP, in its own process, that misbehaves on demand and counts what it charges.

`python fake_endpoint.py` prints its port. `POST /control` takes {"mode": …, "script": […], "delay": …}: the script's
modes answer one request each, then the mode answers the rest. `limit`: [calls, seconds] turns away what comes faster,
within any window. `can`: the features it has; it ignores the others with a 200, or refuses them where `refuses` is
true. `cached`: of its input tokens, how many come from a cache. `fetches`: it gets images by their address.
`GET /charges` says per X-Request-ID how often it was called and what was charged for it, and when calls came.
Not here: any import of Winnow; this is the other side of the wire.
"""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import threading
import time
import urllib.request
import zlib
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
        self.can = ["data_uri", "image_url", "json_schema", "logprobs", "choices"]
        self.refuses = False
        self.fetches = False
        self.cached = 0
        self.last_request: dict[str, Any] = {}
        self.last_answer = "A"

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
        with STATE.lock:
            seen = {
                "charges": STATE.charges,
                "most_at_once": STATE.most_at_once,
                "last_request": STATE.last_request,
                "called_at": STATE.called_at,
                "turned_away": STATE.turned_away,
            }
        self.send(200, seen)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            self.control(body)
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

    def control(self, body: dict[str, Any]) -> None:
        with STATE.lock:
            if body.get("reset"):
                STATE.reset()
            STATE.mode = body.get("mode", STATE.mode)
            STATE.script = deque(body.get("script", STATE.script))
            STATE.delay = body.get("delay", STATE.delay)
            STATE.retry_after = body.get("retry_after", STATE.retry_after)
            for name in ("limit", "can", "refuses", "fetches", "cached"):
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
