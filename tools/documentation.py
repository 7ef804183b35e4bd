"""Hooks of MkDocs for the documentation site (`make docs`): pages made from other files of the repository.

The Markdown files link to each other and to source files by relative paths, which work on GitHub. On the site, a link
to CONTRIBUTING.md, CHANGELOG.md or another file of `PAGES` leads to its page; a link to any other file outside docs/
leads to a page with its text. A link to a folder becomes plain text. Comments are replaced by generated text:

    <!-- generated: configuration keys -->   every key of cerberus_plugin/config.py with its comment and default
    <!-- generated: commands -->             the help of each subcommand of `cerberus`
    <!-- generated: equations -->            the README's table of equations and files
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import posixpath
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site, with the name of the page.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "benchmarks/README.md": "benchmarks.md",
         "projects/Cerberus/README.md": "project.md"}
ALIASES = {"README.md": "docs/index.md"}
LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)([^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", flags=re.M | re.S)


def site_path(path: str) -> str | None:
    """The page or file of the site for a path of the repository; None for a folder and a path that does not exist."""
    path = ALIASES.get(path, path)
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path / "README.md").is_file():
        return site_path(f"{path}/README.md")
    if not (ROOT / path).is_file():
        return None
    return f"source/{path}" if path.endswith(".ipynb") else f"source/{path}.md"


def relinked(text: str, source: str, page: str) -> str:
    """Markdown with the links of a file of the repository changed to those of its page.

    Args:
        source: path of the file in the repository.   page: path of its page in the site.
    """
    def moved(link: re.Match) -> str:
        mark, label, target, anchor = link.groups()
        if not target:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists() or path == "." or path.startswith(".."):
            return link[0]  # MkDocs reports it
        found = site_path(path)
        if found is None:
            return label
        return f"{mark}[{label}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{anchor or ''})"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def linked(text: str, source: str) -> Iterator[str]:
    """Paths of the repository's files that a Markdown file links to."""
    for part in FENCE.split(text):
        if not part.startswith("```"):
            for link in LINK.finditer(part):
                path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[3]))
                if link[3] and not path.startswith("..") and (ROOT / path).is_file():
                    yield path


def on_files(files, config):
    from mkdocs.structure.files import File

    written = {path: (ROOT / path).read_text() for path in PAGES}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        written[path.relative_to(ROOT).as_posix()] = path.read_text()
    outside = {path for source, text in written.items() for path in linked(text, source)
               if path not in PAGES and path not in ALIASES and not path.startswith("docs/")}
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=relinked(written[source], source, page)))
    for path in sorted(outside):
        page = site_path(path)
        if page.endswith(".ipynb"):
            files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
            continue
        text = (ROOT / path).read_text()
        language = LANGUAGES.get(Path(path).suffix, "text")
        content = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n````{language}\n{text}\n````\n"
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    if page.file.generated_by is None:
        markdown = relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    for name, generate in GENERATED.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown


@dataclass(frozen=True)
class Key:
    """A configuration key: its dotted name, its default as written, and its comments."""

    name: str
    default: str
    text: str


def configuration_keys(source: str) -> list[Key | str]:
    """Keys that `add_cerberus_config` adds, in its order.

    A block of comment lines describes the keys that follow it up to an empty line. It is returned as a text before the
    keys, unless it describes the first key only: no other key follows, or all others have their own comment. A comment
    at the end of a line describes its key only.
    """
    lines = source.splitlines()
    function = next(node for node in ast.parse(source).body
                    if isinstance(node, ast.FunctionDef) and node.name == "add_cerberus_config")
    comments = {token.start[0]: token.string.lstrip("# ") for token in
                tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}
    prefixes = {"cfg": ""}
    assigned = {}
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        full = next((name for name in map(lambda target: _dotted(target, prefixes), node.targets) if name), None)
        for target in node.targets:
            if isinstance(target, ast.Name):
                prefixes[target.id] = f"{full}."
        if full and not (isinstance(node.value, ast.Call) and ast.unparse(node.value) == "CN()"):
            assigned[node.lineno] = (full, ast.unparse(node.value))
    found: list[Key | str] = []
    text: list[str] = []
    keys: list[Key] = []

    def close() -> None:
        """Append the keys between two empty lines or blocks of comments, and their text."""
        if keys and (len(keys) == 1 or not keys[0].text) and all(key.text for key in keys[1:]):
            keys[0] = Key(keys[0].name, keys[0].default, " ".join(filter(None, [*text, keys[0].text])))
            text.clear()
        if keys:
            found.extend([" ".join(text), *keys] if text else keys)
        text.clear()
        keys.clear()

    for number in range(function.lineno + 1, function.end_lineno + 1):
        line = lines[number - 1].strip()
        if not line or (line.startswith("#") and keys):
            close()
        if line.startswith("#"):
            text.append(comments[number])
        elif number in assigned:
            keys.append(Key(*assigned[number], comments.get(number, "")))
    close()
    return found


def _dotted(target: ast.expr, prefixes: dict[str, str]) -> str:
    parts = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if not parts or not isinstance(target, ast.Name):
        return ""
    return prefixes[target.id] + ".".join(reversed(parts))


def keys_page() -> str:
    """Markdown of the configuration keys, one section for each section of the configuration."""
    found = configuration_keys((ROOT / "cerberus_plugin/config.py").read_text())
    sections: dict[str, list[str]] = {}
    texts: list[str] = []
    for each in found:
        if isinstance(each, str):
            texts.append(f"{_plain(each)}\n")
            continue
        section = sections.setdefault(each.name.rpartition(".")[0] or "Other", [])
        section += texts
        section.append(f"`{each.name}`{{ #{each.name} }}\n\n:   Default: `{each.default}`. {_sentence(each.text)}\n")
        texts = []
    return "\n".join(f"## {name}\n\n" + "\n".join(section) for name, section in sections.items())


def _sentence(text: str) -> str:
    """A comment as Markdown, with a capital letter and a full stop."""
    word = text.partition(" ")[0].rstrip(",;:")
    start = text[:1].upper() + text[1:] if word.isalpha() and word.islower() else text
    return _plain(start) + ("" if not text or text.endswith((".", ":", "!")) else ".")


def _plain(text: str) -> str:
    """A comment as Markdown: everything except code between backticks is escaped."""
    return "".join(part if n % 2 else re.sub(r"([\\*_\[\]])", r"\\\1", part).replace("<", "&lt;")
                   for n, part in enumerate(re.split(r"(`[^`]*`)", text)))


def commands_page() -> str:
    """Markdown of the help of each subcommand."""
    from cerberus_plugin import cli

    top = argparse.ArgumentParser(prog="cerberus")
    jobs = top.add_subparsers()
    for command in cli.COMMANDS:
        command.add(jobs)
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "84"  # the same page in every terminal
    try:
        helps = {name: job.format_help() for name, job in jobs.choices.items()}
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n\n".join(f"## cerberus {name}\n\n```text\n{textwrap.dedent(text).strip()}\n```"
                       for name, text in helps.items())


def equations_table() -> str:
    """The README's section of equations and files, without its heading."""
    return (ROOT / "README.md").read_text().partition("## Equations and files\n")[2].partition("\n## ")[0].strip()


GENERATED: dict[str, Callable[[], str]] = {"configuration keys": keys_page, "commands": commands_page,
                                           "equations": equations_table}
