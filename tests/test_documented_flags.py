"""Every flag and every preset that the documents name exists, and their commands are accepted."""

import contextlib
import dataclasses
import importlib
import io
import re
import shlex
import typing
from pathlib import Path

import pytest

from runs.__main__ import BENCHMARKS, COMMANDS
from runs.recording import parse
from runs.sweeps.experiment import names

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS.append(ROOT / "docs" / "notebook.ipynb")
SCRIPTS = sorted(path.stem for path in (ROOT / "agents").glob("*.py") if path.stem != "__init__")
OTHERS = {  # of programs that are not ours
    "--help",
    *("--help-all", "--help-nap", "--help-presets"),
    "--logdir",
    "--no-anneal-lr",
    "--no-deps",
    "--python",  # uv
    "--strict",  # mkdocs
    *("--head", "--port"),  # ray start
}
FAMILIES = [
    "chain",
    "levels",
    "low-utd",
    "high-utd",
    "quick",
    "nap",
    "replay",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "fig8",
    "fig9",
    "fig13",
]
"""first words of presets that come in families"""
EXPERIMENTS = set(names())


def flags(cls, prefix=""):
    """Every flag of a dataclass as tyro spells it, with the negation of booleans."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, kind = field.name.replace("_", "-"), hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from flags(kind, f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}"
            yield f"--{prefix}no-{name}"


@pytest.fixture(scope="module")
def known():
    found = set(OTHERS)
    for name in SCRIPTS:
        found |= set(flags(importlib.import_module(f"agents.{name}").Args))
    for command in (*COMMANDS.values(), *BENCHMARKS.values()):
        try:
            module = importlib.import_module(command.module)
        except ImportError:  # an extra that is not installed
            continue
        found |= set(flags(getattr(module, command.args)))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_flags_in_documents_exist(document, known):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]", document.read_text()))
    groups = {flag for flag in named if any(one.startswith(f"{flag}.") for one in known)}  # --shift, --rewarm.*
    assert sorted(named - known - groups) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_documents_name_presets_that_exist(document):
    for script, preset in re.findall(r"agents/(\w+)\.py ([a-z][a-z0-9.-]*)(?![\w.-])", document.read_text()):
        assert preset in importlib.import_module(f"agents.{script}").PRESETS, (script, preset)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_presets_named_as_code_exist(document):
    """`chain-plain`; also families with a star, `low-utd-*`, and methods, `levels-NAME`."""
    presets = {name for script in SCRIPTS for name in importlib.import_module(f"agents.{script}").PRESETS}
    start = "|".join(FAMILIES)
    for name in re.findall(rf"`((?:{start})-[\w.*-]+)`", document.read_text()):
        pattern = re.escape(name).replace(r"\*", ".+").replace("NAME", ".+")
        known = any(re.fullmatch(pattern, preset) for preset in presets) or name in EXPERIMENTS
        assert known or name in ("nap-constant", "nap-decay", "nap-switch", "nap-cusum"), name  # arms of an experiment


def commands(document):
    """Scripts and their words, of the commands in fenced code; those with a placeholder, such as RUN, are left out."""
    fenced = "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", document.read_text(), re.M | re.S)).replace("\\\n", " ")
    for script, words in re.findall(r"^(?:PYTHONPATH=\. )?(?:\.venv/bin/)?python agents/(\w+)\.py(.*)$", fenced, re.M):
        if not re.search(r"\b(?:RUN|PRESET|GAME|S)\b|\.\.\.", words.partition("#")[0]):
            yield script, words.partition("#")[0].strip()


SHOWN = sorted({command for document in DOCUMENTS for command in commands(document)})


@pytest.mark.parametrize(("script", "words"), SHOWN, ids=lambda text: text[:40])
def test_commands_in_documents_are_accepted(script, words):
    module = importlib.import_module(f"agents.{script}")
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            parse(module.Args, module.PRESETS, shlex.split(words))
        except SystemExit:
            pytest.fail(f"{script}.py {words}: {errors.getvalue()}")


def test_commands_are_found():
    assert {script for script, _ in SHOWN} == set(SCRIPTS)
