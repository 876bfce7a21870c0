"""The server over real HTTP, asked by the openai client: answers, batches, refusals, and images that matter."""

from __future__ import annotations

import base64
import fcntl
import http.client
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.trainer.conftest import make_screener, random_images
from trainer import serve
from trainer.batcher import SaidText
from trainer.chat import ApiError, Limits, chat_row, read_request
from trainer.checkpoint import find_model, run_settings
from trainer.config import ConfigRefused
from trainer.contract import prompts
from trainer.contract.dimensions import Dimension, Polarity
from trainer.data import encode_prompts
from trainer.images import prepare_image
from trainer.model import Screener, save_screener
from trainer.rollout import Decoding, Growing, Sampling, generate
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
    step = Decoding.step

    def counted(decoding: Decoding) -> list[Growing]:
        sizes.append(len(decoding.active))
        return step(decoding)

    monkeypatch.setattr(Decoding, "step", counted)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda seed: complete(client, messages=question(seed)), range(12)))
    assert [answer.choices[0].message.content for answer in together] == alone
    assert max(sizes) > 1


def test_stop_cuts_the_text(client: openai.OpenAI) -> None:
    whole = complete(client).choices[0].message.content
    cut = complete(client, stop=whole[3:5]).choices[0]
    assert cut.message.content == whole[: whole.index(whole[3:5])]
    assert cut.finish_reason == "stop"


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"n": 2, "temperature": 1.0, "seed": 4, "max_tokens": 20}
    whole = complete(client, **fields)
    chunks = list(complete(client, **fields, stream=True, stream_options={"include_usage": True}))
    *chunks, last = chunks
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert len(own) > 3
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks)
    assert list(complete(client, **fields, stream=True))[-1].choices, "usage comes only where it is asked for"


def test_a_stream_keeps_back_what_may_be_a_stop_sequence(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=24).choices[0].message.content
    stop = whole[5:9]
    expected = whole[: whole.index(stop)]
    answer = complete(client, max_tokens=24, stop=[stop, "never said"])
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens < complete(client, max_tokens=24).usage.completion_tokens
    parts = list(complete(client, max_tokens=24, stop=[stop, "never said"], stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stop", [[], ["ab"], ["xyz", "é!"]])
def test_text_piece_by_piece_is_the_text_of_the_whole(screener: Screener, stop: list[str]) -> None:
    text = "x xy xyabc é 漢字 🙂é!漢 a abx <answer>A,B</answer>"
    token_ids = screener.tokenizer.encode(text, add_special_tokens=False)
    said = SaidText(screener, stop)
    pieces: list[str] = []
    taken: list[int] = []
    for upto in range(1, len(token_ids) + 1):
        said.add(token_ids[:upto], last=upto == len(token_ids))
        piece, places = said.take(last=upto == len(token_ids) or said.stopped)
        pieces.append(piece)
        taken += places
        if said.stopped:
            break
    cut = min((text.find(one) for one in stop if one in text), default=len(text))
    assert "".join(pieces) == text[:cut]
    assert taken == list(range(len(taken)))
    assert screener.tokenizer.decode([token_ids[at] for at in taken]).startswith(text[: cut - 1])
    assert sum(map(bool, pieces)) > 3


def test_log_probabilities_are_told(server: Server, client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    answer = complete(client, **fields)
    tokens = answer.choices[0].logprobs.content
    images = [prepare_image(server.screener, picture(number)) for number in range(3)]
    ((written,),) = generate(server.screener, [ASK], [images], Sampling(max_new_tokens=8))
    length = len(written.token_ids) - written.finished
    assert [one.logprob for one in tokens] == pytest.approx(list(written.logprobs)[:length], abs=1e-4)
    assert b"".join(bytes(one.bytes) for one in tokens).decode(errors="replace") == answer.choices[0].message.content
    for one in tokens:  # greedy: the likeliest is the one that was taken
        assert (one.top_logprobs[0].token, one.top_logprobs[0].logprob) == (one.token, one.logprob)
        assert len(one.top_logprobs) == 3
    parts = list(complete(client, **fields, stream=True))
    assert [one for part in parts for one in part.choices[0].logprobs.content] == tokens
    assert complete(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert complete(client).choices[0].logprobs is None


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until, "it did not happen within ten seconds"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_leaves_the_batch(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    step = Decoding.step
    taken: list[int] = []

    def slow(decoding: Decoding) -> list[Growing]:
        time.sleep(0.05)
        taken.append(len(decoding.active))
        return step(decoding)

    monkeypatch.setattr(Decoding, "step", slow)
    monkeypatch.setattr(server, "limits", replace(server.limits, max_completion_tokens=1000))
    ending = int(server.screener.end_token_id)
    monkeypatch.setattr(type(server.screener), "banned_token_ids", [ending])  # nobody ends by themselves
    body = {"model": "tiny", "messages": question(), "max_tokens": 500, "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]))
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    wait_until(lambda: server.batcher.decoding == 1)
    assert complete(client).choices, "others are answered while it goes on"
    assert max(taken) == 2, "and it is together with it"
    connection.close()
    wait_until(lambda: server.batcher.decoding == 0)
    assert len(taken) < 300


def test_a_request_that_does_not_fit_waits_for_its_turn(server: Server, client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda seed: complete(client, n=40, temperature=1.0, seed=seed), range(3)))
    assert [len(answer.choices) for answer in answers] == [40] * 3


def test_too_large_and_too_many(server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "config", replace(server.config, max_body_mb=1))
    with pytest.raises(openai.APIStatusError, match="a request may have 1 MB") as refused:
        complete(client, messages=[{"role": "user", "content": "x" * (3 << 20)}])
    assert refused.value.status_code == 413
    monkeypatch.setattr(server.batcher, "_max_waiting", 0)
    with pytest.raises(openai.RateLimitError, match="too many requests are waiting") as busy:
        complete(client)
    assert busy.value.response.headers["retry-after"] == "1"


def test_a_run_directory_is_served_by_its_name(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"command": "sft", "image_max_side": 24}))
    with pytest.raises(ConfigRefused, match="first: this run has no whole model yet"):
        find_model(run)
    shutil.copytree(server.config.model_dir, run / "checkpoints" / "step-00000003" / "model")
    shutil.copytree(server.config.model_dir, run / "checkpoints" / "step-00000009.partial" / "model")
    assert find_model(run) == run / "checkpoints" / "step-00000003" / "model"
    shutil.copytree(server.config.model_dir, run / "model")
    assert find_model(run) == run / "model"
    assert find_model(run / "model") == run / "model"
    assert run_settings(run / "checkpoints" / "step-00000003" / "model")["image_max_side"] == 24
    for given in (run, run / "model"):
        with make_server(ServeConfig(model_dir=given, port=0, device="cpu")) as made:
            assert made.name == given.name
            assert made.image_max_side == 24


def test_a_control_token_in_two_parts_is_text(client: openai.OpenAI) -> None:
    def parts(*texts: str) -> list[Any]:
        content = [{"type": "image_url", "image_url": {"url": uri(picture(0))}}]
        return [{"role": "user", "content": content + [{"type": "text", "text": text} for text in texts]}]

    whole = complete(client, messages=parts("<|image_pad|> what <|im_end|>"))
    cut = complete(client, messages=parts("<|image_", "pad|> what <|", "im_", "end|>"))
    assert cut.usage == whole.usage
    assert cut.choices[0].message.content == whole.choices[0].message.content


def test_text_alone_and_a_system_message_are_answered(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|image_pad|> Hello?"}]
    assert complete(client, messages=messages).usage.completion_tokens >= 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "unsupported_parameter"),
        ({"top_logprobs": 3}, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "invalid_value"),
        ({"extra_body": {"top_k": 5}}, "unsupported_parameter"),
        ({"extra_body": {"temprature": 1}}, "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter"),
        ({"n": 0}, "invalid_value"),
        ({"n": 65}, "invalid_value"),
        ({"temperature": 3}, "invalid_value"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"max_tokens": 33}, "invalid_value"),
        ({"max_tokens": None, "max_completion_tokens": 33}, "invalid_value"),
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
    half = b'{"\\ud83d": 1}'  # of a surrogate pair, as a name
    for path, data, status in (
        ("/nowhere", None, 404),
        *(("/v1/chat/completions", data, 400) for data in (b"{", half)),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(base + path, data))  # noqa: S310
        assert error.value.code == status
        assert "message" in json.loads(error.value.read())["error"]


def test_a_failing_batch_is_said_and_the_next_one_works(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    for name in ("join", "step"):
        monkeypatch.setattr(Decoding, name, broken)
        with pytest.raises(openai.InternalServerError, match="server's log"):
            complete(client)
        with pytest.raises(openai.APIError, match="server's log"):
            list(complete(client, stream=True))
        monkeypatch.undo()
        assert complete(client).choices


def test_who_names_no_length_gets_what_there_is_room_for(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = complete(client).usage.prompt_tokens
    monkeypatch.setattr(server.screener.model.config.text_config, "max_position_embeddings", prompt + 10)
    monkeypatch.setattr(type(server.screener), "banned_token_ids", [int(server.screener.end_token_id)])
    assert complete(client, max_tokens=None).usage.total_tokens == prompt + 10
    with pytest.raises(openai.BadRequestError, match=f"{prompt} prompt tokens and 11 to write are more than"):
        complete(client, max_tokens=11)


def test_a_client_that_sends_half_a_request_is_hung_up_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", int(server.server_address[1]))) as connection:
        connection.settimeout(5)
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000) == b"", "what it sent next would be taken for another request"


def test_a_failure_within_a_stream_ends_it(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no usage")

    monkeypatch.setattr(serve, "_usage", broken)
    body = {"model": "tiny", "messages": question(), "max_tokens": 2, "stream": True}
    data = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    with socket.create_connection(("127.0.0.1", int(server.server_address[1]))) as connection:
        connection.settimeout(5)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert said.startswith(b"HTTP/1.1 200")
    assert said.count(b"HTTP/1.1") == 1
    assert "no usage" in caplog.text


def test_hanging_up_is_seen_beyond_a_thousand_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this machine allows no more open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD, 1500)) as far:
        assert far.fileno() >= 1500
        assert not serve._hung_up(far)
        theirs.close()
        assert serve._hung_up(far)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_token_that_fills_up_the_vocabulary_has_no_text(screener: Screener) -> None:
    assert serve._named(screener, len(screener.tokenizer) + 3, -1.0) == {"token": "", "logprob": -1.0, "bytes": []}


def test_too_many_images_are_refused() -> None:
    content = [{"type": "image_url", "image_url": {"url": uri(picture(0))}}] * 10
    with pytest.raises(ApiError, match="at most 9 images"):
        read_request({"messages": [{"role": "user", "content": content}]}, LIMITS)


def test_text_that_is_no_unicode_is_refused() -> None:
    body = json.loads('{"messages": [{"role": "user", "content": "half a pair \\ud83d"}]}')
    with pytest.raises(ApiError, match=r"messages\[0\]\.content\[0\]\.text is not Unicode text"):
        read_request(body, LIMITS)


def test_a_key_is_asked_for_where_one_is_set(server: Server, client: openai.OpenAI) -> None:
    server.key = "secret"
    try:
        with pytest.raises(openai.AuthenticationError):
            complete(client)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert [model.id for model in client.with_options(api_key="secret").models.list()] == ["tiny"]
        assert complete(client.with_options(api_key="secret")).choices
    finally:
        server.key = None


def test_a_taken_port_is_said_in_one_line(server: Server) -> None:
    taken = ServeConfig(model_dir=server.config.model_dir, port=int(server.server_address[1]), device="cpu")
    with pytest.raises(ConfigRefused, match="cannot listen"):
        make_server(taken)


def test_sigterm_stops_the_command_cleanly(server: Server) -> None:
    command = [sys.executable, "-m", "trainer", "serve", "--set", f"model_dir={server.config.model_dir}"]
    with subprocess.Popen(
        [*command, "--set", "port=0", "--set", "device=cpu"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout
        said = process.stdout.readline()
        assert said.startswith("serving tiny at http://127.0.0.1:")
        with urllib.request.urlopen(said.split()[-1].removesuffix("/v1") + "/healthz") as reply:  # noqa: S310
            assert json.load(reply)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
