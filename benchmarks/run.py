"""Every benchmark, one after the other: `make bench`. Small on a CPU (about 12 minutes), the claims' size on a GPU.

    python benchmarks/run.py                     all
    python benchmarks/run.py losses ranking      some

Each prints its table and leaves it, with its figures as JSON, in runs/benchmarks; one that fails is named at the end.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path("runs/benchmarks")
PICTURES = ("curves", "scaling")
NAMES = ("training", "cpu", "losses", "curves", "loader", "evaluation", "ranking", "filtering", "million", "scaling",
         "gallery", "indexing", "backbones")  # not edits, which needs a trained run, nor audit, which trains for long


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="name", help=f"of {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    failed = []
    for i, name in enumerate(names, start=1):
        print(f"[{i}/{len(names)}] {name}", flush=True)
        picture = ["--plot", str(FOLDER / f"{name}.png")] if name in PICTURES else []
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), "--output",
                               str(FOLDER / f"{name}.json"), *picture], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": path})
        (FOLDER / f"{name}.txt").write_text(done.stdout)
        print(done.stdout)
        print(f"{time.monotonic() - start:.0f} s\n", flush=True)
        if done.returncode:
            failed.append(name)
    print(f"tables and JSON in {FOLDER}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
