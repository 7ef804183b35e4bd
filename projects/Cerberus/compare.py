"""`make compare`: IDE, ARN, APR, the host's bag of tricks and Cerberus trained alike on the demo's people, one table.

Stopped and started again, it goes on where it was; Cerberus is the run of `make demo`. Then the gallery is searched by
APR and by Cerberus with attributes as a filter, threshold by threshold.
"""

import subprocess
import sys
import time
from pathlib import Path

import demo  # before the plugin: it tells the host where the demo's people are
from cerberus_plugin.experiments import accelerate, compare

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs/Market1501"
RUNS = {name: Path(f"runs/{name}_demo") for name in ("ide", "arn", "apr", "bot")} | {"cerberus": demo.FOLDER}
OUTPUT = Path("runs/compare")


def main() -> None:
    start = time.monotonic()
    demo.draw()
    for i, (name, folder) in enumerate(RUNS.items(), start=1):
        print(f"[{i}/{len(RUNS)}] {name}: training in {folder}, {(time.monotonic() - start) / 60:.1f} minutes so far",
              flush=True)
        subprocess.run([sys.executable, str(HERE / "train_net.py"), "--config-file", str(CONFIGS / f"{name}_demo.yml"),
                        "--resume", "OUTPUT_DIR", str(folder)], check=True)
    for name in ("apr", "cerberus"):
        accelerate.main([str(RUNS[name]), "--output", str(OUTPUT / f"acceleration_{name}")])
    compare.main([*map(str, RUNS.values()), "--output", str(OUTPUT)])
    print(f"{(time.monotonic() - start) / 60:.1f} minutes. In {OUTPUT}: comparison.md (the table above), and the "
          "threshold sweeps of the attribute filter, acceleration_*/acceleration.png")


if __name__ == "__main__":
    main()
