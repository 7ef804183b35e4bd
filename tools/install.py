"""Make the virtual environment that the Makefile uses: torch, the small requirements, then FastReID without its own.

Standard library only. Where the calling Python has torch and torchvision, the environment sees them and only what
is missing is added, from the folder of wheels named by --wheels on a machine that reaches no package index.
"""

import argparse
import runpy
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--wheels", help="folder of wheels to install from, without a package index")
    parser.add_argument("--torch", nargs="*", help="other torch and torchvision requirements than setup.py's")
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036  this file is what an older Python runs first
        sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; 3.10 or newer is needed: make PYTHON=...")
    lists = runpy.run_path(str(ROOT / "setup.py"), run_name="lists")
    python = args.venv / "bin" / "python"
    venv.create(args.venv, with_pip=True, system_site_packages=True)
    # Asked of the new environment: where the caller is one itself, its packages are not passed on.
    has_torch = not args.torch and can_import(python, "torch", "torchvision")
    if not has_torch:
        venv.create(args.venv, with_pip=True, clear=True)
    print(f"environment in {args.venv}, torch {'of this machine' if has_torch else 'installed anew'}", flush=True)

    def install(*requirements: str) -> None:
        source = ["--no-index", "--find-links", args.wheels] if args.wheels else []
        command = [str(python), "-m", "pip", "install", "--quiet",
                   "--disable-pip-version-check", *source, *requirements]
        print("pip install", *requirements, flush=True)
        if subprocess.run(command).returncode:
            sys.exit("Installation failed. Without a package index, collect wheels on another machine by `pip download "
                     "-d wheels` of the requirements above and `pip download --no-deps -d wheels` of "
                     f"{lists['HOST']}, then run make with WHEELS=wheels.")

    if not has_torch:
        install(*(args.torch or lists["TORCH"]))
    install(*lists["INSTALL_REQUIRES"], *lists["EXTRAS_REQUIRE"]["dev"])
    install("--no-deps", lists["HOST"])


def can_import(python: Path, *names: str) -> bool:
    """Whether a Python imports these in a process of its own."""
    return subprocess.run([str(python), "-c", f"import {', '.join(names)}"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
