"""Run the benchmarks one after the other: `make bench`. Small sizes on a CPU (about 12 minutes), full sizes on a GPU.

    python benchmarks/run.py                     all
    python benchmarks/run.py losses ranking      some

Tables, and results as JSON, are also written to runs/benchmarks. Failed benchmarks are listed at the end.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path("runs/benchmarks")
PLOTS = ("curves", "scaling")
# Without edits, which needs a trained run, and audit and light_models, which train for long.
NAMES = ("training", "cpu", "losses", "curves", "loader", "evaluation", "ranking", "filtering", "million", "scaling",
         "gallery", "indexing", "backbones")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="name",
                        help=f"some of {', '.join(NAMES)} (default: all)")
    names = parser.parse_args().names or NAMES
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    failed = []
    for i, name in enumerate(names, start=1):
        print(f"[{i}/{len(names)}] {name}", flush=True)
        plot = ["--plot", str(FOLDER / f"{name}.png")] if name in PLOTS else []
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), "--output",
                               str(FOLDER / f"{name}.json"), *plot], stdout=subprocess.PIPE,
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
