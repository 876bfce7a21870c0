"""The server over real HTTP, asked by the openai client: answers, batches, refusals, and images that matter."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.trainer.conftest import make_screener, random_images
from trainer.chat import ApiError, Limits, chat_row, read_request
from trainer.config import ConfigRefused
from trainer.contract import prompts
from trainer.contract.dimensions import Dimension, Polarity
from trainer.data import encode_prompts
from trainer.images import prepare_image
from trainer.model import Screener, save_screener
from trainer.rollout import Sampling, generate
from trainer.serve import ServeConfig, Server, make_server

ASK = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 2)
LIMITS = Limits(max_completion_tokens=32, max_choices=8, max_images=9, max_image_pixels=10_000)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(random_images(1, seed=seed)[0].numpy())


def uri(image: Image.Image, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def question(seed: int = 0) -> list[Any]:
    return prompts.openai_messages(ASK, [uri(picture(seed + number)) for number in range(3)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("served") / "tiny"
    save_screener(make_screener(tmp_path_factory.mktemp("new")), directory)
    server = make_server(
        ServeConfig(model_dir=directory, port=0, device="cpu", max_completion_tokens=32, max_image_pixels=10_000)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_address[1]}/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    settings: dict[str, Any] = {"model": "tiny", "messages": question(), "temperature": 0, "max_tokens": 8}
    return client.chat.completions.create(**settings | fields)


def test_it_answers_as_the_model_does(server: Server, client: openai.OpenAI) -> None:
    answer = complete(client)
    images = [prepare_image(server.screener, picture(number)) for number in range(3)]
    ((written,),) = generate(server.screener, [ASK], [images], Sampling(max_new_tokens=8))
    assert answer.choices[0].message.content == written.text
    assert answer.choices[0].finish_reason == ("stop" if written.finished else "length")
    length = int(encode_prompts(server.screener, [ASK], [images]).lengths[0])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (length, len(written.token_ids))
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_the_prompt_that_is_served_is_the_prompt_that_trains(any_screener: Screener) -> None:
    request = read_request({"model": "m", "messages": question()}, LIMITS)
    row = chat_row(any_screener, request, None)
    batch = encode_prompts(any_screener, [ASK], [row.images])
    assert row.token_ids == batch.input_ids[0].tolist()
    expected = batch.position_ids if batch.position_ids.dim() == 2 else batch.position_ids[:, 0]
    assert (row.positions[: len(expected)] == expected).all()


def test_images_matter(client: openai.OpenAI) -> None:
    answers = {complete(client, messages=question(seed)).choices[0].message.content for seed in range(0, 60, 10)}
    assert len(answers) > 1


def test_orientation_is_applied(client: openai.OpenAI) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = prompts.openai_messages(ASK, [uri(picture(n).rotate(90), exif=exif) for n in range(3)])
    assert complete(client, messages=turned).choices[0].message == complete(client).choices[0].message


def test_n_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"n": 4, "temperature": 1.0, "seed": 11}
    first = [choice.message.content for choice in complete(client, **fields).choices]
    assert len(set(first)) > 1
    assert [choice.message.content for choice in complete(client, **fields).choices] == first
    assert [choice.message.content for choice in complete(client, **fields | {"seed": 12}).choices] != first


def test_requests_that_come_together_get_the_answers_they_get_alone(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [complete(client, messages=question(seed)).choices[0].message.content for seed in range(12)]
    sizes: list[int] = []
    decode = server.batcher._decode

    def counted(batch: Sequence[Any]) -> None:
        sizes.append(len(batch))
        decode(batch)

    monkeypatch.setattr(server.batcher, "_decode", counted)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda seed: complete(client, messages=question(seed)), range(12)))
    assert [answer.choices[0].message.content for answer in together] == alone
    assert max(sizes) > 1


def test_stop_cuts_the_text(client: openai.OpenAI) -> None:
    whole = complete(client).choices[0].message.content
    cut = complete(client, stop=whole[3:5]).choices[0]
    assert cut.message.content == whole[: whole.index(whole[3:5])]
    assert cut.finish_reason == "stop"


def test_text_alone_and_a_system_message_are_answered(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|image_pad|> Hello?"}]
    assert complete(client, messages=messages).usage.completion_tokens >= 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "unsupported_parameter"),
        ({"logprobs": True}, "unsupported_parameter"),
        ({"stream": True}, "unsupported_parameter"),
        ({"n": 0}, "invalid_value"),
        ({"n": 65}, "invalid_value"),
        ({"temperature": 3}, "invalid_value"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"messages": []}, "invalid_messages"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "invalid_messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, **fields)
    assert refused.value.code == code
    assert set(refused.value.response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/a.png", "unsupported_image_url"),
        ("file:///etc/passwd", "unsupported_image_url"),
        ("data:image/png;base64,bm90IGFuIGltYWdl", "invalid_image"),
        ("data:image/png;base64,###", "invalid_image"),
        ("data:image/png,abc", "invalid_image"),
        (uri(Image.new("RGB", (101, 100))), "invalid_image"),
        (uri(Image.new("RGB", (1000, 2))), "invalid_image"),
    ],
)
def test_images_that_cannot_be_read_are_refused(client: openai.OpenAI, url: str, code: str) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, messages=messages)
    assert refused.value.code == code


def test_other_errors_have_the_same_form(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="it is 'tiny'"):
        complete(client, model="another")
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert refused.value.code == "context_length_exceeded"
    base = f"http://127.0.0.1:{server.server_address[1]}"
    for path, data, status in (("/nowhere", None, 404), ("/v1/chat/completions", b"{", 400)):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(base + path, data))  # noqa: S310
        assert error.value.code == status
        assert "message" in json.loads(error.value.read())["error"]


def test_a_failing_batch_is_said_and_the_next_one_works(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.batcher, "_decode", broken)
    with pytest.raises(openai.InternalServerError, match="server's log"):
        complete(client)
    monkeypatch.undo()
    assert complete(client).choices


def test_too_many_images_are_refused() -> None:
    content = [{"type": "image_url", "image_url": {"url": uri(picture(0))}}] * 10
    with pytest.raises(ApiError, match="at most 9 images"):
        read_request({"messages": [{"role": "user", "content": content}]}, LIMITS)


def test_a_key_is_asked_for_where_one_is_set(server: Server, client: openai.OpenAI) -> None:
    server.key = "secret"
    try:
        with pytest.raises(openai.AuthenticationError):
            complete(client)
        assert complete(client.with_options(api_key="secret")).choices
    finally:
        server.key = None


def test_a_taken_port_is_said_in_one_line(server: Server) -> None:
    taken = ServeConfig(model_dir=server.config.model_dir, port=int(server.server_address[1]), device="cpu")
    with pytest.raises(ConfigRefused, match="cannot listen"):
        make_server(taken)


def test_sigterm_stops_the_command_cleanly(server: Server) -> None:
    command = [sys.executable, "-m", "trainer", "serve", "--set", f"model_dir={server.config.model_dir}"]
    process = subprocess.Popen(
        [*command, "--set", "port=0", "--set", "device=cpu"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout
    said = process.stdout.readline()
    assert said.startswith("serving tiny at http://127.0.0.1:")
    with urllib.request.urlopen(said.split()[-1].removesuffix("/v1") + "/healthz") as reply:  # noqa: S310
        assert json.load(reply)["status"] == "ok"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
