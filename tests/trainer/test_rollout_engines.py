"""Completions of a server: a real HTTP process of vLLM's wire format writes them with weights it was told to reload."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer.conftest import MakeExport, make_screener
from trainer import grpo
from trainer.config import ConfigRefused
from trainer.contract.dimensions import Dimension
from trainer.contract.prompts import Picture, Prompt, PromptKind, Text
from trainer.data import encode_prompts
from trainer.grpo import GRPOConfig, Run
from trainer.images import ImageTensor
from trainer.model import Screener, load_screener, save_screener
from trainer.rollout import Sampling, generate
from trainer.rollout_engines import EngineFailed

SHADOW = (Dimension.PHYSICAL_SHADOW,)


class Server(ThreadingHTTPServer):
    """What `vllm serve DIRECTORY` answers, decoded by our own code."""

    directory: Path
    screener: Screener
    asked: list[str]
    lies: dict[str, Any]
    """Fields of a reply that are answered instead of the true ones."""

    def reload(self) -> None:
        self.screener = load_screener(self.directory, "cpu")

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        parts: list[Text | Picture] = []
        images: list[ImageTensor] = []
        for part in body["messages"][0]["content"]:
            if part["type"] == "text":
                parts.append(Text(part["text"]))
            else:
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                parts.append(Picture(len(images)))
                images.append(torch.from_numpy(np.array(Image.open(io.BytesIO(data)))))
        prompt = Prompt(PromptKind.ASK, "", tuple(parts))
        sampling = Sampling(max_new_tokens=body["max_completion_tokens"], temperature=1.0, seed=body["seed"])
        (group,) = generate(self.screener, [prompt], [images], sampling, body["n"])
        choices = [
            {
                "index": index,
                "finish_reason": "stop" if one.finished else "length",
                "message": {"role": "assistant", "content": one.text},
                "token_ids": list(one.token_ids),
                "logprobs": {"content": [{"token": "", "logprob": logprob} for logprob in one.logprobs]},
            }
            for index, one in enumerate(group)
        ]
        ids = encode_prompts(self.screener, [prompt], [images]).input_ids[0].tolist()
        return {"choices": choices, "prompt_token_ids": ids} | self.lies


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({"data": [{"id": str(self.server.directory)}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(self.path)
        match self.path:
            case "/v1/chat/completions":
                self.answer(self.server.complete(body))
            case "/collective_rpc":
                assert body == {"method": "reload_weights"}
                self.server.reload()
                self.answer({"results": [None]})
            case "/reset_prefix_cache":
                self.answer({})
            case _:
                self.send_error(404)

    def answer(self, told: dict[str, Any]) -> None:
        data = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.directory, found.asked, found.lies = tmp_path / "run" / "served", [], {}
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def run(server: Server, make_export: MakeExport, tmp_path: Path) -> Run:
    """A run whose completions the server writes; random weights, so rewards are made up."""
    save_screener(make_screener(tmp_path / "new"), tmp_path / "start")
    return grpo.build(
        GRPOConfig(
            export_dir=make_export(samples=8, dimensions=SHADOW),
            model_dir=tmp_path / "start",
            run_dir=tmp_path / "run",
            steps=2,
            learning_rate=0.05,
            prompts_per_step=3,
            num_generations=4,
            max_completion_length=10,
            dimensions=SHADOW,
            device="cpu",
            start_gate="off",
            use_vllm=True,
            vllm_server_base_url=f"http://127.0.0.1:{server.server_port}/v1",
            vllm_server_timeout=5.0,
        )
    )


def step(run: Run) -> dict[str, Any]:
    records = list(run.train_records.values())[:3]
    seen = grpo.see_records(run, records)
    groups = grpo.write_groups(run, seen, records, seed=1)
    assert [len(group) for group in groups] == [4, 4, 4]
    return grpo.learn(run, seen, [0, 1, 2], groups, torch.linspace(-1, 1, 12).reshape(3, 4))


def test_a_server_writes_with_the_weights_of_the_last_update(run: Run, server: Server) -> None:
    assert server.asked == ["/collective_rpc", "/reset_prefix_cache"]
    for _ in range(2):  # the second step's completions are those of the updated model, or the gap would be wide
        server.asked.clear()
        assert step(run)["logprob_gap"] < 1e-4
        assert server.asked == ["/v1/chat/completions"] * 3 + ["/collective_rpc", "/reset_prefix_cache"]
    ours, theirs = run.screener.model.state_dict(), server.screener.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_server_is_given_whole_weights(run: Run, server: Server) -> None:
    """Where weights are split among processes, what is saved is the whole copy that writes."""
    run.writer = replace(run.screener, model=copy.deepcopy(run.screener.model))
    step(run)
    theirs, copied = server.screener.model.state_dict(), run.writer.model.state_dict()
    assert all(torch.equal(copied[name], theirs[name]) for name in copied)


@pytest.mark.parametrize("served", ["start", "start/served", "run/../start"])
def test_the_start_model_is_not_overwritten(tmp_path: Path, served: str) -> None:
    given = {"export_dir": tmp_path / "e", "model_dir": tmp_path / "start", "run_dir": tmp_path / "run", "steps": 1}
    with pytest.raises(ConfigRefused, match=r"vllm_model_dir: .* expected it outside of model_dir"):
        GRPOConfig(**given, use_vllm=True, vllm_model_dir=tmp_path / served)  # type: ignore[arg-type]


def test_what_the_server_draws_from_another_policy_is_weighed(run: Run, server: Server) -> None:
    with torch.no_grad():
        server.screener.model.get_output_embeddings().weight.mul_(1.5)
    same = {name: value.clone() for name, value in server.screener.model.state_dict().items()}
    moved = []
    for corrected in (True, False):
        server.screener.model.load_state_dict(same)
        run.config = GRPOConfig(
            **{name: getattr(run.config, name) for name in run.config.__dataclass_fields__}
            | {"vllm_importance_sampling_correction": corrected}
        )
        before = {name: value.clone() for name, value in run.screener.model.state_dict().items()}
        figures = step(run)
        assert figures["logprob_gap"] > 0.05
        moved.append(figures["loss"])
        run.screener.model.load_state_dict(before)
    assert moved[0] != pytest.approx(moved[1], abs=1e-4)


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"prompt_token_ids": [1, 2]}, "reads a prompt of .* tokens as 2 others"),
        ({"choices": []}, "expected 4 completions, got 0"),
        ({"choices": [{"finish_reason": "stop"}]}, "lacks 'token_ids'"),
    ],
)
def test_a_reply_that_cannot_be_learnt_from_is_refused(
    run: Run, server: Server, lies: dict[str, Any], said: str
) -> None:
    server.lies = lies
    with pytest.raises(EngineFailed, match=said):
        step(run)


def test_a_server_that_cannot_reload_says_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.send_error(404))
    with pytest.raises(EngineFailed, match="VLLM_SERVER_DEV_MODE=1"):
        run.engine.take_weights(run.screener)
