"""The installer of the Makefile: folders it does not overwrite, errors without a package index, package contents."""

import contextlib
import os
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import yaml

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "tools" / "install.py"


def install(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(INSTALL), *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=600)


def test_a_folder_that_is_not_an_environment_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    done = install(tmp_path)
    assert done.returncode == 1 and f"{tmp_path} is not a virtual environment" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_without_wheels_or_an_index_the_error_has_the_download_commands(tmp_path):
    (tmp_path / "wheels").mkdir()
    done = install(tmp_path / "venv", "--wheels", tmp_path / "wheels", "--torch", "no-such-torch==0", PIP_NO_INDEX="1",
                   PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 1
    assert "pip download -d wheels no-such-torch==0" in done.stderr
    assert "pip download -d wheels --no-deps fastreid==1.4.0" in done.stderr
    assert os.access(tmp_path / "venv" / "bin" / "cerberus", os.X_OK), "the environment includes the command"


def test_data_files_of_the_package_are_installed_with_it(monkeypatch):
    asked = {}
    monkeypatch.setattr("setuptools.setup", lambda **fields: asked.update(fields))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
    shipped = {path for package, patterns in asked["package_data"].items() for pattern in patterns
               for path in ROOT.joinpath(*package.split(".")).glob(pattern)}
    found = {path for path in (ROOT / "cerberus_plugin").rglob("*")
             if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert found and found <= shipped
    assert asked["package_dir"] == {"cerberus_plugin.configs": "configs"}
    assert "cerberus_plugin.configs" in asked["packages"]
    configs = {path for pattern in asked["package_data"]["cerberus_plugin.configs"]
               for path in ROOT.joinpath("configs").glob(pattern)}
    assert configs == {path for path in ROOT.joinpath("configs").rglob("*") if path.is_file()}
    assert "Jinja2" in {item.split(">")[0] for item in asked["install_requires"]}


@pytest.mark.slow
def test_configurations_are_found_from_a_wheel(tmp_path):
    """So that `cerberus train` finds them without the repository."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "logs", "tests", "build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                    "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    found = subprocess.run([sys.executable, "-c", "from cerberus_plugin.config import configuration, merge_file\n"
                            "from cerberus_plugin import add_cerberus_config\nfrom fastreid.config import get_cfg\n"
                            "cfg = get_cfg()\nadd_cerberus_config(cfg)\n"
                            "print(configuration('Market1501/cerberus_plus_demo.yml'))\n"
                            "merge_file(cfg, configuration('Market1501/cerberus_plus_demo.yml'))"],
                           env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")}, cwd=tmp_path, text=True,
                           capture_output=True, check=True)
    assert Path(found.stdout.split()[-1]).is_relative_to(tmp_path / "installed/cerberus_plugin/configs")


def test_a_minimal_environment_has_the_requirements_of_the_package_and_pytest():
    lists = runpy.run_path(str(ROOT / "setup.py"))
    small = runpy.run_path(str(INSTALL))["small_requirements"]
    assert [item for item in small(lists, minimal=True) if item not in lists["INSTALL_REQUIRES"]] == ["pytest>=8,<10"]
    assert set(lists["EXTRAS_REQUIRE"]["dev"]) < set(small(lists, minimal=False))


def test_the_workflow_runs_the_ci_script():
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_versions_with_known_vulnerabilities_are_rejected():
    """torch before 2.6: CVE-2025-32434; Pillow before 10.0.1: CVE-2023-4863, before 10.3: CVE-2024-28219."""
    asked = dict(line.split(">=") for line in runpy.run_path(str(ROOT / "setup.py"))["INSTALL_REQUIRES"]
                 if line.startswith(("torch", "Pillow")))
    assert asked == {"torch": "2.6", "torchvision": "0.21", "Pillow": "10.3"}
    probe = runpy.run_path(str(INSTALL))["PROBE"]
    for version, rejected in (("2.5.1+cu124", True), ("2.6.0", False), ("2.13.0+cpu", False)):
        torch = types.SimpleNamespace(__version__=version, version=types.SimpleNamespace(cuda=None))
        with mock.patch.dict(sys.modules, torch=torch, torchvision=types.ModuleType("torchvision")):
            with pytest.raises(ImportError, match="older than 2.6") if rejected else contextlib.nullcontext():
                exec(probe, {})
