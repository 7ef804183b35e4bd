"""The documentation site: generated pages, links, and no content loaded from other sites."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from cerberus_plugin import add_cerberus_config, cli
from cerberus_plugin.config import flat

import pytest
from fastreid.config import get_cfg

ROOT = Path(__file__).parents[1]
HOOKS = runpy.run_path(str(ROOT / "tools/documentation.py"), run_name="tools")
CONFIG = """
def add_cerberus_config(cfg):
    # Not of a key.

    # Of both.
    cfg.A.X = 1  # of X
    cfg.A.Y = 2

    node = cfg.B = CN()
    # Of one,
    # in two lines.
    node.Z = "z"
    cfg.register_deprecated_key("W")
    cfg.SEED = -1  # of SEED
"""


def test_the_page_of_keys_has_every_key_of_the_plugin_with_its_default():
    fastreid, cfg = get_cfg(), get_cfg()
    add_cerberus_config(cfg)
    before, after = flat(fastreid), flat(cfg)
    added = {name: value for name, value in after.items() if name not in before or before[name] != value}
    page = HOOKS["keys_page"]()
    documented = {key.name: key.default for key in
                  HOOKS["configuration_keys"]((ROOT / "cerberus_plugin/config.py").read_text()) if hasattr(key, "name")}
    assert set(documented) == set(added)
    assert set(re.findall(r"`([A-Z_.]+)`{ #", page)) == set(added)
    assert documented["MODEL.CERBERUS.SIGMA"] == "5.0" and documented["SEED"] == "-1"


def test_comments_before_several_keys_come_before_them_and_others_with_their_key():
    keys = HOOKS["configuration_keys"](CONFIG)
    assert [key if isinstance(key, str) else (key.name, key.default, key.text) for key in keys] == [
        "Of both.", ("A.X", "1", "of X"), ("A.Y", "2", ""), ("B.Z", "'z'", "Of one, in two lines."),
        ("SEED", "-1", "of SEED")]


def test_the_page_of_commands_has_the_help_of_each_subcommand():
    page = HOOKS["commands_page"]()
    assert len(re.findall(r"^## cerberus \w+$", page, flags=re.M)) == len(cli.COMMANDS)
    assert page.count("usage: cerberus ") == len(cli.COMMANDS)


@pytest.mark.parametrize("text, source, page, expected", [
    ("[a](docs/audit.md#x)", "CONTRIBUTING.md", "contributing.md", "[a](audit.md#x)"),
    ("[a](../CONTRIBUTING.md)", "docs/index.md", "index.md", "[a](contributing.md)"),
    ("[a](../../README.md)", "docs/extend/index.md", "extend/index.md", "[a](../index.md)"),
    ("[a](../setup.py)", "docs/index.md", "index.md", "[a](source/setup.py.md)"),
    ("![a](../docs/curves.png)", "benchmarks/README.md", "benchmarks.md", "![a](curves.png)"),
    ("[a](../configs)", "docs/index.md", "index.md", "a"),
    ("[a](../benchmarks)", "docs/index.md", "index.md", "[a](benchmarks.md)"),
    ("[a](missing.md)", "docs/index.md", "index.md", "[a](missing.md)"),
    ("[a](https://example.org/x)", "docs/index.md", "index.md", "[a](https://example.org/x)"),
    ("[a](#x)", "docs/index.md", "index.md", "[a](#x)"),
    ("```\n[a](../setup.py)\n```", "docs/index.md", "index.md", "```\n[a](../setup.py)\n```")])
def test_links_of_the_repository_become_links_of_the_site(text, source, page, expected):
    assert HOOKS["relinked"](text, source, page) == expected


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_other_sites(tmp_path):
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
                           cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?(https?:[^\"' >]*)", text)
        loaded += [link for link in re.findall(r"<link[^>]*>", text) if re.search(r"href=[\"']?https?:", link)]
        assert loaded == [], page
        assert "<!-- generated" not in text, page


def test_the_site_is_not_built_in_the_folder_of_the_first_run():
    settings = (ROOT / "mkdocs.yml").read_text()
    folder = re.search(r"^site_dir: (\S+)$", settings, re.MULTILINE).group(1)  # mkdocs empties it
    assert f"--out {folder}" not in (ROOT / "README.md").read_text()
