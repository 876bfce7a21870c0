"""The ablation on drawn scenes: settings are chosen on seeds 0 to 4, and the table is published once from 5 to 9.

``python -m benchmarks.ablation choose`` and ``python -m benchmarks.ablation publish`` make what is missing under
var/ablation and run ``python -m trainer ablate`` on it; both go on where they were stopped. Every seed has scenes of
its own, with faint defects rare and mostly overlooked in reasonings. The base of all is fixtures/local_screener after
a lesson in which every faint defect is overlooked: as in life it knows the task and not its hard cases.
What follows ``--set`` goes to ablate. Not here: the arms and the figures (trainer/ablate.py), how scenes are drawn
(ablation_scenes.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.ablation_scenes import draw_scenes
from trainer.contract.dimensions import Split

ROOT = Path(__file__).resolve().parent.parent
SEEDS = {"choose": range(5), "publish": range(5, 10)}
FIRST_SCENES = {"choose": 1000, "publish": 2000}
"""Added to a seed: what scenes are drawn from. The two never meet, nor any other set in this repository."""
BASE_SCENES, BASE_SAMPLES = 900, 240
BASE_LESSON = ("steps=80", "learning_rate=4e-4", "seed=0", "resume=true", "report=false")
"""What the base learns from, the same for every seed and both purposes."""
SCENES = ("train", "test", "hardness", "test_hardness", "imperfect", "overlooked", "unseen")
"""The arguments that decide what is drawn."""
PUBLISHED = ("ablation.md", "ablation.json", "ablation.png")


def make_base(home: Path) -> int:
    """The base's lesson under `home`; an exit code."""
    if (home / "base" / "model").exists():
        return 0
    counts = {Split.TRAIN: BASE_SAMPLES, Split.VALIDATION: 8, Split.TEST: 1}
    scenes = home / "base-scenes"
    code = _draw(
        scenes, seed=BASE_SCENES, counts=counts, hardness=0.5, test_hardness=0.5, imperfect=0.0, overlooked=1.0
    )
    if code:
        return code
    command = [sys.executable, "-m", "trainer", "sft", "--config", str(ROOT / "benchmarks" / "ablation_sft.toml")]
    paths = [f"export_dir={scenes}", f"run_dir={home / 'base'}", f"model_dir={ROOT / 'fixtures' / 'local_screener'}"]
    return subprocess.run([*command, "--set", *paths, *BASE_LESSON], cwd=ROOT, check=False).returncode


def _differs(home: Path, made: dict[str, Any]) -> str:
    """Which settings differ from those that `home` was made with; noted there the first time."""
    noted = home / "made.json"
    if not noted.exists():
        home.mkdir(parents=True, exist_ok=True)
        noted.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    before = json.loads(noted.read_text(encoding="utf-8"))
    return ", ".join(name for name, value in json.loads(json.dumps(made)).items() if before.get(name) != value)


def _draw(scenes: Path, **how: Any) -> int:
    """`draw_scenes`, where it has not been done before."""
    return 0 if (scenes / "manifest.json").exists() else draw_scenes(scenes, **how)


def main() -> int:
    """Draw, run, and where it is published put table and plot into docs/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("purpose", choices=SEEDS)
    parser.add_argument("--seeds", type=int, default=5, help="the first so many of the purpose's five (default 5)")
    parser.add_argument("--train", type=int, default=80, help="samples to learn from; four records each at most (80)")
    parser.add_argument("--test", type=int, default=240, help="held-out samples (default 240)")
    parser.add_argument("--hardness", type=float, default=0.12, help="share of faint defects to learn from (0.12)")
    parser.add_argument("--test-hardness", type=float, default=0.5, help="… among the held-out ones (default 0.5)")
    parser.add_argument("--unseen", action="store_true", help="keep records with defects that the model cannot see")
    parser.add_argument("--overlooked", type=float, default=0.8, help="share of faint defects overlooked in reasonings")
    parser.add_argument("--imperfect", type=float, default=0.1, help="share of otherwise bad reasonings (default 0.1)")
    parser.add_argument("--home", type=Path, help="where runs and scenes are kept (default var/ablation/PURPOSE)")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at the same time, each a process of its own")
    given = parser.parse_args()
    docs = ROOT / "docs"
    if given.purpose == "publish" and all((docs / name).exists() for name in PUBLISHED):
        print("ablation: docs/ holds the published table: what is run once is not run again", file=sys.stderr)
        return 1
    home = given.home or ROOT / "var" / "ablation" / given.purpose
    seeds = list(SEEDS[given.purpose])[: given.seeds]
    scenes = {name: getattr(given, name) for name in SCENES}
    if told := _differs(home, {**scenes, "base": [BASE_SCENES, BASE_SAMPLES, *BASE_LESSON]}):
        print(f"ablation: {home} was made with other settings ({told}): name another --home", file=sys.stderr)
        return 1
    counts = {Split.TRAIN: scenes.pop("train"), Split.VALIDATION: 16, Split.TEST: scenes.pop("test")}
    for seed in seeds:
        first = FIRST_SCENES[given.purpose] + seed
        if code := _draw(home / f"scenes-{seed}", seed=first, counts=counts, **scenes):
            return code
    if code := make_base(home):
        return code
    settings = [
        f"export_dir={home}/scenes-{{seed}}", f"model_dir={home / 'base' / 'model'}",
        f"run_dir={home / 'runs'}", f"sft_config={ROOT / 'benchmarks' / 'ablation_sft.toml'}",
        f"grpo_config={ROOT / 'benchmarks' / 'ablation_grpo.toml'}", f"seeds={seeds}",
        f"command={shlex.join(['python', '-m', 'benchmarks.ablation', *sys.argv[1:]])}",
    ]  # fmt: skip
    if given.purpose == "publish":
        settings.append(f"publish_dir={docs}")
    command = [sys.executable, "-m", "trainer", "ablate", "--set", *settings, *given.overrides]
    # Seeds have nothing in common: each job does some of them, and the last call finds all done and only compares.
    some = [f"seeds={seeds[job :: given.jobs]}" for job in range(min(given.jobs, len(seeds)))] if given.jobs > 1 else []
    jobs: list[subprocess.Popen[bytes]] = []
    try:
        jobs += [subprocess.Popen([*command, "publish_dir=none", mine], cwd=ROOT) for mine in some]
        codes = [job.wait() for job in jobs]
    finally:
        # Who is stopped takes its jobs along: started again, two of them would write one seed's runs.
        for job in jobs:
            job.terminate()
            job.wait()
    if any(codes):
        return 1
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
