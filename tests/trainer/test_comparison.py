"""Several models and endpoints in one table: over real HTTP, resumed after a break, with what is to be minded."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import make_screener
from trainer import endpoint, evaluate
from trainer.__main__ import main
from trainer.config import ConfigRefused, Refused
from trainer.confusion import confusion, hard_records, letter_counts, mistakes
from trainer.contract.answers import format_completion
from trainer.contract.dimensions import Dimension, Split
from trainer.contract.exports import read_records
from trainer.contract.scores import ScoreVariant
from trainer.endpoint import EndpointConfig, EndpointFailed
from trainer.evaluate import EvaluateConfig
from trainer.model import save_screener
from trainer.predictions import Answered, AnswerLog, Prediction, predict, read_predictions
from trainer.progress import Progress
from trainer.serve import ServeConfig, make_server


class Judge(ThreadingHTTPServer):
    """A chat endpoint that knows every answer, and says to each request what its script says first."""

    daemon_threads = True

    def __init__(self, export: Path) -> None:
        super().__init__(("127.0.0.1", 0), _JudgeHandler)
        records = list(read_records(export))
        # Records of one sample share their images and their answer here: what the endpoint sees tells it which.
        self.answers = {
            endpoint.data_uri(record.original.path, (export / record.original.path).read_bytes()): format_completion(
                "seen", record.answer
            )
            for record in records
        }
        self.script: list[tuple[int, dict[str, str], str]] = []
        self.always: tuple[int, dict[str, str], str] | None = None
        self.fails_on: set[str] = set()
        """Originals, as they are sent, about which it says `always`; empty: about all."""
        self.patience = 0.02
        self.asked: list[dict[str, Any]] = []
        self.at_once, self.most_at_once = 0, 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _JudgeHandler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        judge = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.asked.append(body)
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
            original = body["messages"][0]["content"][1]["image_url"]["url"]
            about = not judge.fails_on or original in judge.fails_on
            planned = judge.script.pop(0) if judge.script else judge.always if about else None
        text = judge.answers[original]
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        good = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage})
        status, headers, said = planned or (200, {}, good)
        data = said.encode()
        threading.Event().wait(0.02 if planned else judge.patience)
        with judge.lock:
            judge.at_once -= 1
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=getattr(server, "run", server.serve_forever))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def export(make_export: Callable[..., Path]) -> Path:
    return make_export(samples=8, dimensions=(Dimension.PHYSICAL_SHADOW, Dimension.PLACEMENT_LAYOUT))


@pytest.fixture
def judge(export: Path) -> Iterator[Judge]:
    with running(Judge(export)) as server:
        yield server


def asked_of(judge: Judge, **fields: Any) -> EndpointConfig:
    return EndpointConfig(base_url=judge.base_url, model="judge", **{"attempts": 3} | fields)


def settings(export: Path, tmp_path: Path, **fields: Any) -> EvaluateConfig:
    given: dict[str, Any] = {
        "export_dir": export,
        "run_dir": tmp_path / "compared",
        "split": Split.TRAIN,
        "max_completion_length": 8,
        "resamples": 100,
        "device": "cpu",
    }
    return EvaluateConfig(**given | fields)


def test_directories_and_endpoints_stand_in_one_table(
    export: Path, judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_screener(make_screener(tmp_path / "new"), tmp_path / "runs" / "sft" / "model")
    file = tmp_path / "compare.toml"
    served = make_server(ServeConfig(model_dir=tmp_path / "runs" / "sft", port=0, device="cpu"))
    with running(served) as server:
        file.write_text(
            f'export_dir = "{export}"\nrun_dir = "{tmp_path / "compared"}"\nmax_completion_length = 8\n'
            'resamples = 100\nsplit = "train"\ndevice = "cpu"\n'
            f'[[models]]\nname = "judge"\nendpoint = {{base_url = "{judge.base_url}", model = "judge"}}\n'
            f'[[models]]\nname = "over HTTP"\n[models.endpoint]\nbase_url = "http://127.0.0.1:{server.server_address[1]}/v1"\n'
            'model = "sft"\n'
        )
        assert main(["evaluate", f"own={tmp_path / 'runs' / 'sft'}", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    compared = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    names = [row["name"] for row in compared["models"]]
    assert names == ["own", "judge", "over HTTP"]
    own, best, over_http = (
        read_predictions(tmp_path / "compared" / n / "predictions.jsonl") for n in ("own", "judge", "over-HTTP")
    )
    assert [one.text for one in own] == [one.text for one in over_http], "one model, one answer, whichever way"
    assert all(one.answer == one.gold for one in best)
    gains = [two.score(ScoreVariant.EXACT) - one.score(ScoreVariant.EXACT) for one, two in zip(own, best, strict=True)]
    assert compared["models"][1]["over_first"]["exact"]["value"] == pytest.approx(sum(gains) / len(gains))
    assert compared["models"][1]["tokens"] == {"prompt": 1200, "completion": 120}
    assert 1 < judge.most_at_once <= 8
    markdown = (tmp_path / "compared" / "comparison.md").read_text()
    assert printed.strip() == markdown.strip()
    assert "| judge " in markdown
    assert "best constant answer" in markdown
    assert (tmp_path / "compared" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "## Which answers are taken for which" in (tmp_path / "compared" / "own" / "evaluation.md").read_text()


def test_what_was_answered_is_not_asked_again(export: Path, judge: Judge, tmp_path: Path) -> None:
    said = '{"choices": [{"message": {"content": "<answer>A</answer>"}}]}'
    judge.script = [(200, {}, said)] * 5
    judge.always = (401, {}, "no")
    config = settings(export, tmp_path, endpoint=asked_of(judge, concurrency=1))
    with pytest.raises(EndpointFailed, match=r"HTTP 401 no; 5 of 12 answers are kept: the same command goes on"):
        evaluate.evaluate(config)
    kept = (tmp_path / "compared" / "answers.jsonl").read_text()
    # Killed while it wrote a row: the half row is dropped.
    (tmp_path / "compared" / "answers.jsonl").write_text(kept + '{"record_id": "s0')
    judge.always, judge.asked = None, []
    report = evaluate.evaluate(config)
    assert len(judge.asked) == 7
    assert report["records"] == 12
    judge.asked = []
    assert evaluate.evaluate(config)["figures"] == report["figures"]
    assert judge.asked == []
    another = replace(config, max_completion_length=9)
    evaluate.evaluate(another)
    assert len(judge.asked) == 12
    assert (tmp_path / "compared" / "answers-1.jsonl").read_text().startswith(kept)


def test_failures_that_may_pass_are_tried_again(export: Path, judge: Judge, tmp_path: Path) -> None:
    judge.script = [(429, {"Retry-After": "0.05"}, "slower"), (503, {}, "busy"), (200, {}, "<html>"), (529, {}, "full")]
    report = evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge, attempts=5)))
    assert report["figures"]["overall"]["exact"]["value"] == 1.0
    assert len(judge.asked) == 16
    judge.always = (503, {}, "down")
    config = settings(export, tmp_path / "again", endpoint=asked_of(judge, attempts=2))
    with pytest.raises(EndpointFailed, match=r"HTTP 503 down, 2 times; \d+ of 12 answers are kept"):
        evaluate.evaluate(config)


def test_what_was_under_way_is_kept_when_one_request_fails(export: Path, judge: Judge, tmp_path: Path) -> None:
    judge.script, judge.patience = [(401, {}, "no")], 0.3
    config = settings(export, tmp_path, endpoint=asked_of(judge, concurrency=4))
    with pytest.raises(EndpointFailed, match=r"HTTP 401 no; \d of 12 answers are kept") as failed:
        evaluate.evaluate(config)
    paid = len(judge.asked) - 1
    assert paid >= 3
    assert f"no; {paid} of 12 answers are kept" in str(failed.value)
    judge.asked, judge.patience = [], 0.02
    assert evaluate.evaluate(config)["figures"]["overall"]["exact"]["value"] == 1.0
    assert len(judge.asked) == 12 - paid


def test_what_was_under_way_is_kept_after_ctrl_c(
    export: Path, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config = settings(export, tmp_path, endpoint=asked_of(judge, concurrency=4))
    monkeypatch.setattr(Progress, "show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(config)
    monkeypatch.undo()
    paid = len(judge.asked)
    assert 4 <= paid < 12
    evaluate.evaluate(config)
    assert len(judge.asked) == 12


def test_who_is_told_to_wait_does_not_hold_up_the_end(export: Path, judge: Judge, tmp_path: Path) -> None:
    judge.script, judge.always = [(429, {"Retry-After": "30"}, "slower")] * 2, (401, {}, "no")
    began = time.monotonic()
    with pytest.raises(EndpointFailed, match="HTTP 401"):
        evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge, concurrency=3)))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("always", [(200, {}, "<html>"), (500, {}, "down"), (200, {}, '{"choices": []}')])
def test_one_record_that_always_fails_does_not_block_the_others(
    export: Path, judge: Judge, tmp_path: Path, always: tuple[int, dict[str, str], str]
) -> None:
    record = next(read_records(export, Split.TRAIN))
    judge.fails_on = {endpoint.data_uri(record.original.path, (export / record.original.path).read_bytes())}
    judge.always = always
    config = settings(export, tmp_path, endpoint=asked_of(judge, attempts=2))
    report = evaluate.evaluate(config)
    # Two records show this original.
    assert report["refusals"] == {"not_answered": 2}
    assert report["figures"]["overall"]["exact"]["value"] == pytest.approx(10 / 12)
    judge.always, judge.asked = None, []
    assert evaluate.evaluate(config)["refusals"] == {}
    assert len(judge.asked) == 2, "a failure may pass: these two alone are asked again"


def test_an_endpoint_that_goes_down_with_errors_is_not_taken_for_bad_records(
    export: Path, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_FAILED_IN_A_ROW", 4)
    said = '{"choices": [{"message": {"content": "<answer>A</answer>"}}]}'
    judge.script, judge.always = [(200, {}, said)] * 2, (500, {}, "down")
    config = settings(export, tmp_path, endpoint=asked_of(judge, attempts=1, concurrency=1))
    with pytest.raises(EndpointFailed, match="HTTP 500 down, 1 times; so did 4 requests in a row; 2 of 12 answers"):
        evaluate.evaluate(config)


def test_a_broken_connection_under_tls_is_tried_again(
    export: Path, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, broken = http.client.HTTPResponse.read, [ssl.SSLError(1, "record layer failure")]

    def breaking(reply: http.client.HTTPResponse, amount: int | None = None) -> bytes:
        if broken:
            raise broken.pop()
        return read(reply, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", breaking)
    report = evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge, concurrency=1)))
    assert report["figures"]["overall"]["exact"]["value"] == 1.0
    assert len(judge.asked) == 13


@pytest.mark.parametrize("broken", ["changed", "gone", "grammar"])
def test_an_export_that_is_not_what_it_was_is_refused_before_anything_is_asked(
    export: Path, judge: Judge, tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = export / next(read_records(export, Split.TRAIN)).original.path
    if broken == "grammar":
        manifest = json.loads((export / "manifest.json").read_text())
        manifest["prompt_versions"]["ask"] = "ask-99"
        (export / "manifest.json").write_text(json.dumps(manifest))
    elif broken == "gone":
        picture.unlink()
    else:
        data = bytearray(picture.read_bytes())
        data[-1] ^= 1  # of the same size: told apart by its hash alone, when it is sent
        picture.write_bytes(data)
    given = [f"export_dir={export}", f"run_dir={tmp_path / 'r'}", "split=train", "endpoint.model=judge"]
    assert main(["evaluate", "--set", *given, f"endpoint.base_url={judge.base_url}"]) == 1
    said = capsys.readouterr().err.strip().split("\n")[-1]
    wanted = {
        "changed": f"{picture} was changed",
        "gone": f"{picture}: No such file",
        "grammar": "as prompt ask-99 asks",
    }
    assert wanted[broken] in said
    assert broken == "changed" or judge.asked == []


def test_a_record_that_is_refused_counts_as_not_answered(export: Path, judge: Judge, tmp_path: Path) -> None:
    judge.script = [(400, {}, '{"error": "a filter"}')]
    report = evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge, concurrency=1)))
    assert report["refusals"] == {"not_answered": 1}
    assert "a filter" in report["not_answered"][0]
    assert report["figures"]["overall"]["exact"]["value"] == pytest.approx(11 / 12)
    assert "would not answer 1 records" in (tmp_path / "compared" / "evaluation.md").read_text()


def test_an_endpoint_that_refuses_everything_stops_at_once(export: Path, judge: Judge, tmp_path: Path) -> None:
    judge.always = (400, {}, "no such field")
    with pytest.raises(EndpointFailed, match="HTTP 400 no such field: it has answered nothing yet; 0 of 12 answers"):
        evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge, concurrency=1)))
    assert len(judge.asked) <= 5


def test_options_change_the_request(export: Path, judge: Judge, tmp_path: Path) -> None:
    options = '{"max_tokens": null, "max_completion_tokens": 99, "reasoning_effort": "low"}'
    evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge, options=options), limit=1))
    said = {name: value for name, value in judge.asked[0].items() if name != "messages"}
    assert said == {"model": "judge", "temperature": 0.0, "max_completion_tokens": 99, "reasoning_effort": "low"}
    with pytest.raises(ConfigRefused, match=r"endpoint\.options: not JSON"):
        asked_of(judge, options="low")
    with pytest.raises(ConfigRefused, match="expected a JSON object"):
        asked_of(judge, options="[1]")


def test_what_a_run_was_trained_on_is_found(export: Path, judge: Judge, tmp_path: Path) -> None:
    other = json.loads((export / "manifest.json").read_text())
    assert other
    for name, start in (("sft", "base"), ("grpo", tmp_path / "sft" / "model")):
        (tmp_path / name).mkdir()
        told = {"command": name, "export_dir": str(export), "model_dir": str(start)}
        (tmp_path / name / "config.json").write_text(json.dumps(told))
    save_screener(make_screener(tmp_path / "new"), tmp_path / "grpo" / "model")
    (tmp_path / "sft" / "config.json").write_text(
        json.dumps({"command": "sft", "export_dir": str(export), "model_dir": "base"})
    )
    assert evaluate._training_exports(tmp_path / "grpo") == [export]
    assert evaluate._training_exports(tmp_path / "grpo" / "model") == [export]
    assert evaluate._training_exports(tmp_path / "new") == []


def test_an_export_that_a_run_names_and_nobody_finds_is_said(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "sft"
    save_screener(make_screener(tmp_path / "new"), run / "model")
    told = {"command": "sft", "export_dir": "exports/first", "model_dir": "base"}
    (run / "config.json").write_text(json.dumps(told))
    evaluate.main(settings(export, tmp_path, model_dir=run, limit=1))
    assert "warning: exports/first, which it was trained on, is not here" in capsys.readouterr().out
    assert "was trained on exports/first, which is not here" in (tmp_path / "compared" / "evaluation.md").read_text()


def test_another_precision_is_another_model(export: Path, tmp_path: Path) -> None:
    save_screener(make_screener(tmp_path / "new"), tmp_path / "model")
    for dtype in ("float32", "bfloat16", "auto"):  # on a CPU auto is the first
        evaluate.evaluate(settings(export, tmp_path, model_dir=tmp_path / "model", limit=1, dtype=dtype))
    kept = sorted(path.name for path in (tmp_path / "compared").glob("answers*.jsonl"))
    assert kept == ["answers-1.jsonl", "answers-2.jsonl", "answers.jsonl"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"runs": ("a/x", "b/x")}, "two models are called 'x'"),
        ({"runs": ("a",), "model_dir": Path("b")}, "set either model_dir or endpoint"),
        ({"runs": ("org/m=a", "org-m=b")}, "the models 'org/m' and 'org-m' would share a directory: name them apart"),
        ({"runs": ("SFT=a", "b/sft")}, "the models 'SFT' and 'sft' would share a directory"),
        ({"runs": ("a/x", "a/x")}, "two models are called 'x'"),
        (
            {"hard_file": Path("absent"), "endpoint": EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m")},
            "absent: cannot be read",
        ),
    ],
)
def test_mistakes_are_named(export: Path, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        evaluate.evaluate(settings(export, tmp_path, **fields))


def made(answers: list[tuple[str, str | None]]) -> list[Prediction]:
    """Predictions of given and said letters, four candidates."""
    return [
        Prediction(
            f"r{n}", f"s{n}", "physical_shadow", 4, frozenset(gold), None if said is None else frozenset(said), None, ""
        )
        for n, (gold, said) in enumerate(answers)
    ]


def test_confusion_counts_what_is_taken_for_what() -> None:
    found = confusion(made([("AB", "AB"), ("AB", "A"), ("AB", "A"), ("", "D"), ("C", None)]))
    assert found["pairs"] == {"A,B": {"A": 2, "A,B": 1}, "C": {"unread": 1}, "none": {"D": 1}}
    assert found["size"] == {"-1": 2, "0": 1, "1": 1}
    assert mistakes(found) == [("A,B", "A", 2), ("C", "unread", 1), ("none", "D", 1)]


def test_letters_are_counted_as_by_hand() -> None:
    some = made([("AB", "AC"), ("B", "B"), ("A", None)])
    counts = letter_counts(some)
    assert counts["A"] == {
        "true_positive": 1,
        "false_positive": 0,
        "false_negative": 0,
        "true_negative": 1,
        "unread": 1,
    }
    assert counts["B"] == {
        "true_positive": 1,
        "false_positive": 0,
        "false_negative": 1,
        "true_negative": 0,
        "unread": 1,
    }
    assert counts["C"] == {
        "true_positive": 0,
        "false_positive": 1,
        "false_negative": 0,
        "true_negative": 1,
        "unread": 1,
    }
    assert set(counts) == set("ABCD")
    kinds = Counter(kind for found in counts.values() for kind, times in found.items() for _ in range(times))
    assert sum(kinds.values()) == 12


def test_hard_records_are_those_that_say_so(export: Path, tmp_path: Path) -> None:
    records = list(read_records(export, Split.TRAIN))[:4]
    ids = [record.id for record in records]
    assert hard_records(records, [], None) == ("", set())
    doubtful = [replace(records[0], agreement=0.5), *(replace(record, agreement=1.0) for record in records[1:])]
    assert hard_records(doubtful, [], None) == ("people did not all agree", {ids[0]})
    level = {records[1].dimension.value: 0.4}
    faint = [replace(one, meta={"levels": [level if n == 1 else {}, {}]}) for n, one in enumerate(doubtful)]
    assert hard_records(faint, [], None) == ("a faint defect", {ids[1]})
    marked = [replace(one, meta=dict(one.meta) | {"hard": n == 2}) for n, one in enumerate(faint)]
    assert hard_records(marked, [], None) == ("marked in the records", {ids[2]})
    (tmp_path / "hard.txt").write_text(f"{ids[3]}\nanother\n")
    assert hard_records(marked, [], tmp_path / "hard.txt") == ("listed in hard.txt", {ids[3]})
    right = [predict(record, format_completion("x", record.answer)) for record in records]
    wrong = [predict(record, "nothing") for record in records]
    assert hard_records(records, [right, wrong], None) == ("", set())
    assert hard_records(records, [right, wrong, wrong[:1] + right[1:]], None)[1] == {ids[0]}
    with pytest.raises(Refused, match="absent: cannot be read"):
        hard_records(records, [], tmp_path / "absent")


def test_easy_and_hard_add_up(export: Path, judge: Judge, tmp_path: Path) -> None:
    ids = [record.id for record in read_records(export, Split.TRAIN)]
    (tmp_path / "hard.txt").write_text("\n".join(ids[:5]))
    report = evaluate.evaluate(settings(export, tmp_path, endpoint=asked_of(judge), hard_file=tmp_path / "hard.txt"))
    found = report["difficulty"]
    assert (found["hard"]["records"], found["easy"]["records"]) == (5, 7)
    assert "Hard records (listed in hard.txt):" in (tmp_path / "compared" / "evaluation.md").read_text()


def test_an_answer_log_of_something_else_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerLog(path, {"model": "a"}).add("r", Answered(text="\ud83d half"))
    assert AnswerLog(path, {"model": "a"}).known["r"].text == "? half"
    other = AnswerLog(path, {"model": "b"})
    assert (other.known, other.put_aside) == ({}, tmp_path / "answers-1.jsonl")
    separated = "one\u2028two\u2029three\u0085four"
    other.add("s", Answered(text=separated))
    with path.open("a") as file:
        file.write('{"record_id": "half')
    for _ in range(2):
        again = AnswerLog(path, {"model": "b"})
        assert (again.known, again.put_aside) == ({"s": Answered(text=separated)}, None)
    path.write_text("not json\n")
    assert AnswerLog(path, {"model": "b"}).put_aside == tmp_path / "answers-2.jsonl"
