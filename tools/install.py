"""Create the virtual environment of the Makefile: torch, other requirements, then FastReID without its requirements.

Standard library only. If the calling Python has torch and torchvision, the environment uses them and only missing
packages are installed. On a machine without access to a package index, --wheels names a folder of wheels.
"""

import argparse
import runpy
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Run by the new environment: fails with the reason if it has no torch that the plugin supports.
PROBE = """
import torch
try:
    import torchvision
except RuntimeError as error:  # torch for the CPU with torchvision for CUDA, which host/imports.py supports
    if "torchvision::nms" not in str(error) or torch.version.cuda:
        raise
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
    raise ImportError(f"torch {torch.__version__} is older than 2.6")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--wheels", help="folder of wheels to install from, without a package index")
    parser.add_argument("--torch", nargs="*", help="torch and torchvision requirements, instead of setup.py's")
    parser.add_argument("--minimal", action="store_true", help="no development requirements except pytest")
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036  older Pythons run this file, too
        sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; 3.10 or newer is needed: make PYTHON=...")
    if args.venv.exists() and not (args.venv / "pyvenv.cfg").is_file():
        sys.exit(f"{args.venv} is not a virtual environment and would be emptied; choose another folder")
    lists = runpy.run_path(str(ROOT / "setup.py"), run_name="lists")
    python = args.venv / "bin" / "python"
    look_outside(args.venv)
    problem = "another one was requested" if args.torch else no_torch(python)
    create(args.venv, python, with_torch=not problem)
    print(f"environment in {args.venv}, " + (f"with its own torch ({problem})" if problem else
                                             "with the torch of this machine"), flush=True)

    small = small_requirements(lists, args.minimal)
    steps = [args.torch or lists["TORCH"], small]
    if not problem:
        # Do not name an installed torch: pip would install its requirements, such as a newer setuptools.
        steps = [[item for item in small if not item.startswith("torch")]]
    # The plugin itself, importable from any folder; an editable install would need setuptools from an index.
    (site_packages(args.venv) / "cerberus_plugin.pth").write_text(f"{ROOT}\n")
    # The command also works after the environment is moved.
    command = args.venv / "bin" / "cerberus"
    command.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m cerberus_plugin.cli "$@"\n')
    command.chmod(0o755)
    source = ["--no-index", "--find-links", args.wheels] if args.wheels else []
    for options in (*steps, ["--no-deps", lists["HOST"]]):
        print("pip install", shlex.join(options), flush=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *source, *options]
        if subprocess.run(command).returncode:
            sys.exit("Installation failed. Without a package index, run on a machine with access to one, with this "
                     f"system and Python {sys.version_info[0]}.{sys.version_info[1]},\n"
                     f"    pip download -d wheels {shlex.join(sum(steps, []))}\n"
                     f"    pip download -d wheels --no-deps {lists['HOST']}\n"
                     "copy the folder to this machine and run make with WHEELS=wheels.")


def small_requirements(lists: dict, minimal: bool) -> list[str]:
    """Requirements in addition to torch and FastReID: for development, or only to run the package and pytest."""
    development = lists["EXTRAS_REQUIRE"]["dev"]
    return [*lists["INSTALL_REQUIRES"], *(item for item in development if not minimal or item.startswith("pytest>"))]


def look_outside(folder: Path) -> None:
    """Create an empty environment with access to the packages of the calling Python."""
    venv.create(folder, clear=True, system_site_packages=True)
    if sys.prefix != sys.base_prefix:
        # The caller is an environment itself: a new one has access to its base only, so its packages are added.
        outside = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site_packages(folder) / "caller.pth").write_text("\n".join(sorted(outside)) + "\n")


def site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def no_torch(python: Path) -> str:
    """The reason why this Python has no torch for the plugin (last line of its error); empty if it has one."""
    probe = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True)
    return (probe.stderr.strip() or f"exit status {probe.returncode}").splitlines()[-1] if probe.returncode else ""


def create(folder: Path, python: Path, with_torch: bool) -> None:
    """Install pip in the environment; if the calling Python has no usable torch, isolate the environment from it."""
    try:
        venv.create(folder, with_pip=True, clear=not with_torch, system_site_packages=with_torch)
    except subprocess.CalledProcessError:  # Debian's Python without its venv package: use the outer pip
        if subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode:
            sys.exit(f"{sys.executable} cannot put pip into an environment; on Debian and Ubuntu: "
                     "apt install python3-venv")


if __name__ == "__main__":
    main()
