"""A chat endpoint that does nothing but wait: as fast as one process of Python can be, so that callers are measured.

`python -m benchmarks.quick_endpoint --delay 0.2` prints its port. Every POST is answered after the delay with the same
answer in other words. Not here: misbehaving (tests/workers/fake_endpoint.py).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random

_SYLLABLES = ("ba", "co", "du", "fe", "ga", "ho", "ki", "lu")
_WORDS = ["".join(parts) for parts in itertools.product(_SYLLABLES, repeat=3)]
_SAID = (
    "<think>A stands upright, casts a shadow, keeps its shape; the background goes on: WORDS.</think><answer>A</answer>"
)
_BODY = json.dumps(
    {
        "id": "chatcmpl-NUMBER",
        "object": "chat.completion",
        "created": 0,
        "model": "quick",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": _SAID}},
        ],
        "usage": {"prompt_tokens": 2000, "completion_tokens": 40, "total_tokens": 2040},
    }
)
_numbers = itertools.count(1)


def _response() -> bytes:
    """The same answer, every time in other words: nobody's near-copy."""
    words = " ".join(random.choices(_WORDS, k=40))
    body = _BODY.replace("NUMBER", str(next(_numbers))).replace("WORDS", words).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class _Caller(asyncio.Protocol):
    """One connection: counts the bytes of a request, waits, answers."""

    delay = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._head = b""
        self._missing = -1

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            head, found, rest = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            self._missing = int(length.split(b":")[1])
            self._head, data = b"", rest
        self._missing -= len(data)
        if self._missing == 0:
            self._missing = -1
            asyncio.get_running_loop().call_later(self.delay, self._transport.write, _response())


async def serve(delay: float) -> None:
    """Until the process is ended."""
    _Caller.delay = delay
    server = await asyncio.get_running_loop().create_server(_Caller, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.2)
    asyncio.run(serve(parser.parse_args().delay))
