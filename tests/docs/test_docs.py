"""The documents build without a warning, and what they show is what happens."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import autosplit
from autosplit.cli import failures, main
from autosplit.device import read_cluster
from autosplit.errors import AutosplitError

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)

PROGRESS = re.compile(r"^[a-z][^:\n]* \.\.\.\n", re.MULTILINE)  # on stderr, of what takes more than a second


def blocks(page, language):
    return [found["body"] for found in FENCE.finditer(page.read_text()) if found["language"] == language]


def with_blocks(language):
    found = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", found, ids=[page.stem for page in found])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@with_blocks("pycon")
def test_python_does_what_the_page_shows(page):
    text = "\n".join(blocks(page, "pycon"))
    case = doctest.DocTestParser().get_doctest(text, {}, page.stem, str(page), 0)
    said = io.StringIO()
    assert doctest.DocTestRunner(optionflags=FLAGS).run(case, out=said.write).failed == 0, said.getvalue()
    assert case.examples


def commands(block):
    """Each command of a console block, with what the block shows below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def run(command):
    """Exit code and all that is printed by ``autosplit ...``."""
    name, *words = shlex.split(command)
    assert name == "autosplit", command
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main(words), said.getvalue()


@with_blocks("console")
def test_commands_print_what_the_page_shows(page):
    """A command may fail only if the page asks for its exit code in the next line."""
    code = 0
    for command, shown in (pair for block in blocks(page, "console") for pair in commands(block)):
        if command == "echo $?":
            assert str(code) == shown.strip()
            code = 0
            continue
        assert code == 0, f"the command before {command!r} ended with {code}"
        code, said = run(command)
        said = PROGRESS.sub("", said)
        if not doctest.OutputChecker().check_output(shown, said, FLAGS):
            pytest.fail(f"{command}\nthe page shows:\n{shown}\nprinted:\n{said}")
    assert code == 0


@with_blocks("toml")
def test_cluster_files_are_read(page):
    for block in blocks(page, "toml"):
        Path("cluster.toml").write_text(block)
        assert read_cluster("cluster.toml").devices


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_no_python_goes_untested(page):
    assert blocks(page, "python") == [], "write it as ```pycon, with what it prints"


# ---------------------------------------------------------------- the page of errors

ERRORS = (DOCS / "errors.md").read_text()
HEADINGS = set(re.findall(r"^## (\S+)$", ERRORS, re.MULTILINE))
IDS = set(re.findall(r'<a id="([^"]+)">', ERRORS))


def subclasses(cls):
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_every_kind_of_error_has_its_heading():
    assert set(failures.KINDS) - HEADINGS == set()


def test_every_class_and_every_exit_code_has_its_anchor():
    classes = {cls for cls in subclasses(AutosplitError) if cls.__module__ == "autosplit.errors"}
    assert {cls.__name__ for cls in classes} - IDS == set()
    codes = {cls.exit_code for cls in classes} | {0, failures.BUG, failures.DEVICE_FAULT, failures.INTERRUPTED, 2}
    assert {f"exit-{code}" for code in codes} - IDS == set()


def test_an_error_on_the_command_line_says_what_to_do(capsys):
    assert main(["devices", "2xA1000-80GB"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"what to do: {failures.WHAT_TO_DO['device']}\n")
    assert "docs/" not in said  # who installed it has no such file


@pytest.mark.parametrize("kind", sorted({*failures.KINDS} - {"usage", "interrupted"}))
def test_the_page_of_errors_says_the_same(kind):
    section = re.split(rf"^## {kind}$", ERRORS, flags=re.MULTILINE)[1].partition("\n## ")[0]
    assert f"What to do: {failures.WHAT_TO_DO[kind]}" in " ".join(section.replace("`", "").split())


# ---------------------------------------------------------------- the pages


def test_every_public_name_is_on_the_api_page():
    text = (DOCS / "api.md").read_text()
    assert [name for name in autosplit.__all__ if f"autosplit.{name}\n" not in text] == []


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")),
    reason="needs Sphinx: pip install -e '.[docs]'",
)
def test_the_pages_build_without_a_warning(tmp_path):
    words = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    made = {path.stem for path in (tmp_path / "html").glob("*.html")}
    assert {page.stem for page in PAGES} <= made
    cli = (tmp_path / "html" / "cli.html").read_text()
    assert all(f'id="autosplit-{verb}"' in cli for verb in ("plan", "show", "diff", "check", "devices", "demo"))
    assert 'id="autosplit.partition"' in (tmp_path / "html" / "api.html").read_text()
