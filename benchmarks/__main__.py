"""`make bench`: runs the measured claims and prints one JSON object per line.

Each part is a module with ``measure() -> Iterator[Measurement]``; both sides of a ratio are measured in turns in one
process, and medians are what counts. Not here: timed tests (there are none; a claim lives here or nowhere).
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
    chosen = parser.parse_args().only
    for part in [chosen] if chosen else PARTS:
        print(f"measuring {part}", file=sys.stderr)
        for measurement in importlib.import_module(f"benchmarks.{part}").measure():
            print(json.dumps(measurement), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
