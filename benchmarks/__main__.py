"""`make bench`: runs the measured claims and prints one JSON object per line.

A part is a module with ``measure(*, scale) -> Iterator[Measurement]``. Both sides of a ratio are measured in turns in
one process, and medians are what counts. Not here: timed tests (there are none; a claim lives here or nowhere).
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from benchmarks.measurement import PARTS


def main() -> int:
    """Run all parts or one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    parser.add_argument("--scale", action="store_true", help="at 128,000 samples, where a part has such a size")
    given = parser.parse_args()
    for part in [given.only] if given.only else PARTS:
        print(f"measuring {part}", file=sys.stderr)
        for measurement in importlib.import_module(f"benchmarks.{part}").measure(scale=given.scale):
            print(json.dumps(measurement), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
