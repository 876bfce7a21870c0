"""`make demo`: the whole loop on drawn scenes, unattended, in a throw-away home, ending with one table.

import → annotate by all three approaches → resolve → freeze → export → SFT → HCM-GRPO → evaluate → the model serves and
annotates tasks it was not trained on. Everything runs as users run it: the launcher, the commands, the API over HTTP,
the trainer. Writes the same figures to var/demo.json. Not here: the scripted person (demo_person.py), the table
(demo_report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotation_server.client import Client
from benchmarks.demo_person import SimulatedPerson, read_drawn
from benchmarks.demo_report import learning_figures, table

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "fixtures" / "base_screener"
"""Where SFT starts: the local model in the middle of its own training; its README says how it was made."""
PROJECT = "demo"
ERROR_RATE = 0.1
DIMENSIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many drawn samples go where. Four tasks each."""

    by_hand: int = 40
    answer_driven: int = 40
    automated: int = 40
    held_out: int = 150
    """Gold: never in train. At least 500 records."""
    fresh: int = 12
    """Annotated by the trained model; nobody else sees them."""


class DemoFailed(Exception):
    """A step did not do what it should; the message is one line."""


def main() -> int:
    """Run the demo; 0 when every step did its work, whatever the models scored."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description="The whole loop on drawn scenes.")
    parser.add_argument("--seed", type=int, default=0, help="of the training runs (default 0)")
    parser.add_argument("--sft-minutes", type=float, default=0.8)
    parser.add_argument("--grpo-minutes", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="keep the home here, to look at it afterwards")
    given = parser.parse_args()
    began = time.monotonic()
    home = given.keep or Path(tempfile.mkdtemp(prefix="winnow-demo-"))
    try:
        demo = Demo(home, seed=given.seed, sft_minutes=given.sft_minutes, grpo_minutes=given.grpo_minutes)
        with demo.served():
            figures = demo.run()
        figures["seconds"] = round(time.monotonic() - began, 1)
        print(table(figures))
        (ROOT / "var").mkdir(exist_ok=True)
        (ROOT / "var" / "demo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except DemoFailed as failed:
        print(f"demo: {failed}", file=sys.stderr)
        return 1
    finally:
        if not given.keep:
            shutil.rmtree(home, ignore_errors=True)
    return 0


class Demo:
    """One pass through the loop. Each step is a method, named in the order of `run`."""

    def __init__(self, home: Path, *, seed: int, sft_minutes: float, grpo_minutes: float) -> None:
        self.home, self.seed, self.sizes = home, seed, Sizes()
        self.minutes = {"sft": sft_minutes, "grpo": grpo_minutes}
        self.port, self.model_port, self.trained_port = _free_ports(3)
        self.env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "annotation_server.settings",  # also where the tests' settings are in force
            "WINNOW_HOME": str(home),
            "PORT": str(self.port),
            "MODEL_PORT": str(self.model_port),
            "DEMO": "False",
            "HF_HUB_OFFLINE": "1",
        }
        for name in ("DATABASE_URL", "REDIS_URL", "STORAGE_URL"):
            self.env.pop(name, None)
        self.figures: dict[str, Any] = {}
        self._last_step = time.monotonic()

    @contextmanager
    def served(self) -> Iterator[None]:
        """Winnow running in the throw-away home; stopped at the end, with everything it started."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "launcher.log").open("w") as log:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "annotation_server.launcher"], cwd=ROOT, env=self.env, stdout=log, stderr=log
            )
            try:
                _wait_for(f"http://127.0.0.1:{self.port}/healthz", launcher)
                _wait_for(f"http://127.0.0.1:{self.model_port}/healthz", launcher)
                yield
            finally:
                launcher.send_signal(signal.SIGTERM)
                launcher.wait(timeout=30)

    def run(self) -> dict[str, Any]:
        """The loop."""
        self.say("Winnow is up")
        self.import_samples()
        self.annotate()
        self.freeze_and_export()
        self.learn()
        self.put_to_work()
        return self.figures

    def import_samples(self) -> None:
        """Draw the samples and import them; only the held-out ones bring answers, as gold."""
        sizes = self.sizes
        drawn = {
            "work": (sizes.by_hand + sizes.answer_driven + sizes.automated, 101, []),
            "held_out": (sizes.held_out, 102, ["--gold", "1"]),
            "fresh": (sizes.fresh, 103, []),
        }
        for name, (samples, seed, more) in drawn.items():
            where = self.home / "drawn" / name
            self.python(
                "-m", "fixtures.scenes", str(where), "--samples", str(samples), "--seed", str(seed), "--size", "128",
                "--jobs", str(os.cpu_count() or 1), "--answers", *more,
            )  # fmt: skip
            # The truth stays with the scripted person; what is imported has no answers but gold.
            (where / "truth.jsonl").write_text((where / "samples.jsonl").read_text())
            rows = [json.loads(line) for line in (where / "samples.jsonl").read_text().splitlines()]
            for row in rows:
                del row["answers"], row["rationales"]
            (where / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.truth = read_drawn(*(self.home / "drawn" / name / "truth.jsonl" for name in drawn))
        self.manage("create_person", "manager", "--administrator")
        with self.client("manager") as client:
            # Drawn scenes are alike, and so are true sentences about them: near-copies are not looked for.
            client.create_project(PROJECT, "The whole loop", model_confidence=0.0, near_copy=None)
        self.manage("create_person", "simulated", "--project", PROJECT, "--role", "annotator")
        self.manage("create_person", "engineer", "--project", PROJECT, "--role", "ml_engineer")
        self.import_drawn("work")
        self.import_drawn("held_out")
        self.manage("add_endpoint", "local", "--base-url", f"http://127.0.0.1:{self.model_port}/v1",
                    "--model", "local_screener", "--caveat", "Knows drawn scenes only.")  # fmt: skip
        self.say(f"imported {len(self.truth) // DIMENSIONS - sizes.fresh} samples")

    def import_drawn(self, name: str) -> None:
        """Import one drawn set by the command."""
        self.manage("import_samples", PROJECT, str(self.home / "drawn" / name / "samples.jsonl"), "--name", name)

    def annotate(self) -> None:
        """A part by hand, a part answered by the person and explained by the model, a part by the model alone."""
        sizes = self.sizes
        with self.client("simulated") as client:
            person = SimulatedPerson(client, self.truth, ERROR_RATE, seed=self.seed)
            person.annotate(PROJECT, sizes.by_hand * DIMENSIONS, with_rationale=True)
            person.annotate(PROJECT, sizes.answer_driven * DIMENSIONS, with_rationale=False)
        self.say(f"the simulated person annotated {(sizes.by_hand + sizes.answer_driven) * DIMENSIONS} tasks")
        wanted = {"answer_driven": sizes.answer_driven, "automated": sizes.automated}
        runs = {}
        for approach, samples in wanted.items():
            runs[approach] = self.run_model("local", approach, samples * DIMENSIONS)
            self.say(f"{approach}: {runs[approach]['accepted']} of {samples * DIMENSIONS} accepted")
        self.figures["person"] = {"simulated": True, "error_rate": ERROR_RATE, "mistakes": person.mistakes}
        self.figures["runs"] = runs

    def run_model(self, endpoint: str, approach: str, limit: int) -> dict[str, Any]:
        """One run by the command; its summary from the API."""
        self.manage("annotate", PROJECT, "--approach", approach, "--endpoint", endpoint, "--limit", str(limit))
        with self.client("engineer") as client:
            newest = client.runs(PROJECT)[0]
        return {**newest["progress"], "refusals": newest["refusals"], "state": newest["state"]}

    def freeze_and_export(self) -> None:
        """Freeze what is resolved, export it, and prove the export."""
        version_id = self.manage("freeze_version", PROJECT, "first").split()[-1]
        self.export = self.home / "export"
        self.manage("export_version", version_id, str(self.export), "--format", "native")
        said = self.manage("verify_version", str(self.export))
        if not said.startswith("ok"):
            raise DemoFailed(f"the export does not verify: {said}")
        manifest = json.loads((self.export / "manifest.json").read_text())
        self.figures["version"] = {"id": version_id, "splits": manifest["splits"]}
        self.figures["records"] = _records_by_approach(self.export)
        self.say(f"version {version_id[:12]} {manifest['splits']}")

    def learn(self) -> None:
        """SFT from the base, HCM-GRPO from there; each evaluated on the held-out records."""
        runs = self.home / "runs"
        self.evaluate("base", BASE)
        self.train("sft", BASE, runs / "sft")
        self.evaluate("sft", runs / "sft" / "model")
        self.train("grpo", runs / "sft" / "model", runs / "grpo")
        self.evaluate("grpo", runs / "grpo" / "model")
        self.figures["learning"] = learning_figures(
            {name: runs / f"evaluate-{name}" for name in ("base", "sft", "grpo")}
        )

    def train(self, method: str, start: Path, run_dir: Path) -> None:
        """One training run by its example settings, for the demo's minutes and seed."""
        self.python(
            "-m", "trainer", method, "--config", str(ROOT / "benchmarks" / f"demo_{method}.toml"),
            "--set", f"export_dir={self.export}", f"model_dir={start}", f"run_dir={run_dir}",
            f"minutes={self.minutes[method]}", f"seed={self.seed}",
        )  # fmt: skip
        self.say(f"{method} done")

    def evaluate(self, name: str, model: Path) -> None:
        """Exact match and DPA on the held-out split."""
        where = self.home / "runs" / f"evaluate-{name}"
        self.python(
            "-m", "trainer", "evaluate",
            "--set", f"export_dir={self.export}", f"model_dir={model}", f"run_dir={where}", "split=test",
        )  # fmt: skip
        self.say(f"{name} evaluated")

    def put_to_work(self) -> None:
        """Serve the trained model; as an annotator it judges samples that came after its training."""
        run_dir = self.home / "runs" / "grpo"
        url = f"http://127.0.0.1:{self.trained_port}"
        serving = subprocess.Popen(
            [sys.executable, "-m", "trainer", "serve", "--set", f"model_dir={run_dir / 'model'}",
             f"port={self.trained_port}", "name=screener-1"],
            cwd=ROOT, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(f"{url}/healthz", serving)
            shutil.copy(self.home / "runs" / "evaluate-grpo" / "evaluation.json", run_dir / "evaluation.json")
            self.manage("register_model", "screener-1", str(run_dir), "--base-url", f"{url}/v1")
            self.import_drawn("fresh")
            run = self.run_model("screener-1", "automated", self.sizes.fresh * DIMENSIONS)
            with self.client("engineer") as client:
                judged = _answers_of(client, PROJECT, "screener-1")
        finally:
            serving.terminate()
            serving.wait(timeout=30)
        right = sum(self.truth[key].answer == answer for key, answer in judged.items())
        self.figures["at_work"] = {"tasks": len(judged), "exact": right / max(1, len(judged)), "run": run}
        self.say(f"the trained model annotated {len(judged)} fresh tasks")

    def client(self, person: str) -> Client:
        """Somebody at the API, with a token of their own."""
        token = self.manage("create_token", person, f"demo {time.monotonic_ns()}").strip()
        return Client(f"http://127.0.0.1:{self.port}", token)

    def manage(self, *arguments: str) -> str:
        """One of Winnow's commands; what it printed."""
        return self.python("manage.py", *arguments)

    def python(self, *arguments: str) -> str:
        """Run Python on something and return what it printed; DemoFailed with its last line when it fails."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()] or ["it said nothing"]
            raise DemoFailed(f"{' '.join(arguments[:3])} failed ({done.returncode}): {said[-1]}")
        return done.stdout

    def say(self, what: str) -> None:
        """One line of progress, with the seconds it took."""
        now = time.monotonic()
        print(f"[{now - self._last_step:5.1f} s] {what}", file=sys.stderr, flush=True)
        self._last_step = now


def _answers_of(client: Client, project: str, annotator: str) -> dict[tuple[str, str], frozenset[str]]:
    """What a model said, by (sample, dimension), as a member who annotates nothing may read it."""
    answers: dict[tuple[str, str], frozenset[str]] = {}
    after: int | None = 0
    while after is not None:
        page = client.tasks(project, after=after)
        for row in page["tasks"]:
            for annotation in client.task(project, row["id"])["annotations"]:
                if annotation["annotator"] == annotator:
                    answers[row["sample"], row["dimension"]] = frozenset(annotation["answer"])
        after = page["next_after"]
    return answers


def _records_by_approach(export: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for shard in sorted(export.glob("records-*.jsonl")):
        for line in shard.read_text(encoding="utf-8").splitlines():
            approach = json.loads(line)["approach"] or "no rationale (gold)"
            counts[approach] = counts.get(approach, 0) + 1
    return counts


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(url: str, process: subprocess.Popen[Any], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise DemoFailed(f"what should answer at {url} ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own loopback address
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise DemoFailed(f"{url} did not answer within {seconds:g} s")


if __name__ == "__main__":
    sys.exit(main())
