"""Who writes a run's completions: the model itself, or a vLLM server beside it on a large machine.

A server draws from a policy that is not quite the one being trained (other kernels, lower precision); its
log-probabilities come back with the words, and the loss weighs them (objective.rollout_correction). It serves a
directory that every update writes anew; its development endpoint reloads it (VLLM_SERVER_DEV_MODE=1).
Not here: decoding by the model itself (rollout.py).
"""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import io
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from trainer.config import Refused
from trainer.contract.prompts import Prompt, openai_messages
from trainer.images import ImageTensor
from trainer.model import Screener, save_screener
from trainer.rollout import Written, reseeded, write_seen_groups
from trainer.sampling import Sampling
from trainer.seen_prompts import SeenPrompts


class EngineFailed(Refused):
    """The server gave no completions; the message names it and what came instead."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a step."""

    place: int
    """Its number in the step: it decides its draws."""
    prompt: Prompt
    images: Sequence[ImageTensor]


class RolloutEngine(Protocol):
    """What writes groups of completions."""

    corrected: bool
    """Whether its log-probabilities are another model's, by which the loss has to be weighed."""

    def write(
        self, asked: Sequence[Asked], seen: SeenPrompts, sampling: Sampling, num_generations: int
    ) -> list[list[Written]]:
        """`num_generations` completions of each prompt; `seen` holds the same prompts encoded."""
        ...

    def take_weights(self, screener: Screener) -> None:
        """Write with these weights from now on."""
        ...


class OwnEngine:
    """The model itself: nothing to correct, nothing to send."""

    corrected = False

    def write(
        self, asked: Sequence[Asked], seen: SeenPrompts, sampling: Sampling, num_generations: int
    ) -> list[list[Written]]:
        """Decode behind the encoded prompts."""
        return write_seen_groups(seen, [one.place for one in asked], sampling, num_generations)

    def take_weights(self, screener: Screener) -> None:
        """They are its own."""


class ServerEngine:
    """A vLLM server (`vllm serve DIRECTORY`), asked over its OpenAI-compatible API."""

    corrected = True

    def __init__(self, base_url: str, directory: Path, timeout_seconds: float, concurrency: int = 8) -> None:
        self._url = base_url.rstrip("/").removesuffix("/v1")
        self._directory = directory
        self._timeout = timeout_seconds
        self._concurrency = concurrency
        self._model = ""

    def write(
        self, asked: Sequence[Asked], seen: SeenPrompts, sampling: Sampling, num_generations: int
    ) -> list[list[Written]]:
        """One request per prompt, several at once. EngineFailed names what is wrong with a reply."""
        self._model = self._model or self._served_model()
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            bodies = [self._body(one, seen, sampling, num_generations) for one in asked]
            replies = list(pool.map(lambda body: self._send("/v1/chat/completions", body), bodies))
        return [self._groups(seen, one, reply, num_generations) for one, reply in zip(asked, replies, strict=True)]

    def take_weights(self, screener: Screener) -> None:
        """Write the served directory anew, and let the server read it; nothing cached under old weights remains."""
        staged = self._directory.with_name(self._directory.name + ".new")
        shutil.rmtree(staged, ignore_errors=True)
        save_screener(screener, staged, torch.bfloat16 if screener.device.type == "cuda" else None)
        self._directory.mkdir(parents=True, exist_ok=True)
        for file in staged.iterdir():
            file.replace(self._directory / file.name)
        staged.rmdir()
        self._send("/collective_rpc", {"method": "reload_weights"})
        self._send("/reset_prefix_cache", {})

    def _body(self, one: Asked, seen: SeenPrompts, sampling: Sampling, num_generations: int) -> dict[str, Any]:
        screener = seen.screener
        body: dict[str, Any] = {
            "model": self._model,
            "messages": openai_messages(one.prompt, [_data_uri(image) for image in one.images]),
            "n": num_generations,
            "max_completion_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": reseeded(sampling, one.place).seed % (1 << 31),
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": True,
            "repetition_penalty": sampling.repetition_penalty,
            # Never an image placeholder in a completion: every later forward of it would break.
            "logit_bias": {str(token): -100 for token in screener.banned_token_ids},
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.min_p:
            body["min_p"] = sampling.min_p
        return body

    def _groups(self, seen: SeenPrompts, one: Asked, reply: Any, num_generations: int) -> list[Written]:
        screener = seen.screener
        try:
            ours = seen.token_ids(one.place)
            if reply["prompt_token_ids"] != ours:
                theirs = len(reply["prompt_token_ids"])
                raise EngineFailed(
                    f"{self._url}: the server reads a prompt of {len(ours)} tokens as {theirs} others: "
                    f"serve the run's own directory, {self._directory}"
                )
            written = [self._written(screener, choice) for choice in reply["choices"]]
        except (KeyError, TypeError, IndexError) as error:
            raise EngineFailed(
                f"{self._url}: the reply lacks {error}: expected vLLM's chat completions with return_token_ids"
            ) from None
        if len(written) != num_generations:
            raise EngineFailed(f"{self._url}: expected {num_generations} completions, got {len(written)}")
        return written

    def _written(self, screener: Screener, choice: Any) -> Written:
        tokens = tuple(choice["token_ids"])
        logprobs = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
        if len(logprobs) != len(tokens):
            raise EngineFailed(f"{self._url}: {len(tokens)} tokens came with {len(logprobs)} log-probabilities")
        finished = choice["finish_reason"] == "stop"
        if finished and tokens[-1] != screener.end_token_id:
            raise EngineFailed(f"{self._url}: a completion ended with token {tokens[-1]}, which ends nothing here")
        said = tokens[:-1] if finished else tokens
        return Written(tokens, logprobs, screener.tokenizer.decode(said, skip_special_tokens=True), finished)

    def _served_model(self) -> str:
        try:
            return str(self._send("/v1/models", None)["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise EngineFailed(f"{self._url}/v1/models: no model is listed ({error})") from None

    def _send(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        # The scheme was checked to be http or https when the settings were read.
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})  # noqa: S310
        until = time.monotonic() + self._timeout
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as reply:  # noqa: S310
                    told = reply.read()
                return json.loads(told) if told else None
            except urllib.error.HTTPError as error:
                said = error.read(500).decode(errors="replace").strip()
                hint = "; reloading needs VLLM_SERVER_DEV_MODE=1" if error.code == 404 else ""
                raise EngineFailed(f"{self._url}{path}: HTTP {error.code} {said}{hint}") from None
            except (OSError, http.client.HTTPException) as error:
                # A server that is still loading its model refuses connections.
                if time.monotonic() > until:
                    raise EngineFailed(f"{self._url}{path}: no reply ({getattr(error, 'reason', error)})") from None
                time.sleep(min(1.0, self._timeout / 10))
            except ValueError as error:
                raise EngineFailed(f"{self._url}{path}: the reply is no JSON ({error})") from None


def _data_uri(image: ImageTensor) -> str:
    """The very pixels the trainer reads, without loss."""
    stream = io.BytesIO()
    Image.fromarray(image.numpy()).save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
