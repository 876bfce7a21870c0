"""The ablation on drawn scenes: settings are chosen on seeds 0 to 4, and the table is published once from 5 to 9.

``python -m benchmarks.ablation choose`` and ``python -m benchmarks.ablation publish`` draw what is missing under
var/ablation, every seed scenes of its own (faint defects rare and mostly overlooked in
reasonings), and run
``python -m trainer ablate`` on them; both go on where they were stopped. What follows ``--set`` goes to that command.
Not here: the arms and the figures (trainer/ablate.py), how scenes are drawn (ablation_scenes.py).
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.ablation_scenes import draw_scenes

ROOT = Path(__file__).resolve().parent.parent
SEEDS = {"choose": range(5), "publish": range(5, 10)}
FIRST_SCENES = {"choose": 1000, "publish": 2000}
"""Added to a seed: what scenes are drawn from. The two never meet, nor any other set in this repository."""
PUBLISHED = ("ablation.md", "ablation.json", "ablation.png")


def main() -> int:
    """Draw, run, and where it is published put table and plot into docs/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("purpose", choices=SEEDS)
    parser.add_argument("--seeds", type=int, default=5, help="the first so many of the purpose's five (default 5)")
    parser.add_argument("--train", type=int, default=100, help="samples to learn from; four records each (default 100)")
    parser.add_argument("--test", type=int, default=150, help="held-out samples (default 150)")
    parser.add_argument("--hardness", type=float, default=0.1, help="share of faint defects (default 0.1)")
    parser.add_argument("--overlooked", type=float, default=0.8, help="share of faint defects overlooked in reasonings")
    parser.add_argument("--imperfect", type=float, default=0.1, help="share of otherwise bad reasonings (default 0.1)")
    parser.add_argument("--home", type=Path, help="where runs and scenes are kept (default var/ablation/PURPOSE)")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    given = parser.parse_args()
    docs = ROOT / "docs"
    if given.purpose == "publish" and all((docs / name).exists() for name in PUBLISHED):
        print("ablation: docs/ holds the published table: what is run once is not run again", file=sys.stderr)
        return 1
    home = given.home or ROOT / "var" / "ablation" / given.purpose
    seeds = list(SEEDS[given.purpose])[: given.seeds]
    for seed in seeds:
        scenes = home / f"scenes-{seed}"
        if (scenes / "manifest.json").exists():
            continue
        code = draw_scenes(
            scenes,
            seed=FIRST_SCENES[given.purpose] + seed,
            train=given.train,
            validation=16,
            test=given.test,
            hardness=given.hardness,
            imperfect=given.imperfect,
            overlooked=given.overlooked,
        )
        if code:
            return code
    settings = [
        f"export_dir={home}/scenes-{{seed}}", f"model_dir={ROOT / 'fixtures' / 'base_screener'}",
        f"run_dir={home / 'runs'}", f"sft_config={ROOT / 'benchmarks' / 'ablation_sft.toml'}",
        f"grpo_config={ROOT / 'benchmarks' / 'ablation_grpo.toml'}", f"seeds={seeds}",
        f"command={shlex.join(['python', '-m', 'benchmarks.ablation', *sys.argv[1:]])}",
    ]  # fmt: skip
    if given.purpose == "publish":
        settings.append(f"publish_dir={docs}")
    command = [sys.executable, "-m", "trainer", "ablate", "--set", *settings, *given.overrides]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
