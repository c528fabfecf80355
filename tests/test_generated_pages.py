"""Tables of the documentation that docs/generate.py writes: the pages are up to date, and the tables are true."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import re

import pytest

from runs.recording import TAGS, parse
from tests.documents import ROOT

SPEC = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.stem)
def test_page_is_up_to_date(page):
    """If not: .venv/bin/python docs/generate.py"""
    text = page.read_text()
    assert text == generate.with_parts(text, generate.parts_of(page), page)


def test_every_script_has_a_page():
    assert set(generate.SCRIPTS) == {path.stem for path in (ROOT / "agents").glob("*.py")} == set(generate.LOGGED)
    assert {path.stem for path in (ROOT / "docs" / "agents").glob("*.md")} == {*generate.SCRIPTS, "index"}


@pytest.mark.parametrize("script", generate.SCRIPTS)
def test_flags_of_the_table_make_the_preset(script):
    """Those of the family and its own, read by the script's own command line."""
    module = generate.module_of(script)
    shared, own = generate.families(script)
    presets = list(module.PRESETS)
    # A command line takes a tenth of a second: the ends, and whatever has flags of a kind that no earlier one had.
    seen: set[str] = set()
    chosen = []
    for name in presets:
        if name in (presets[0], presets[-1]) or not set(own[name]) <= seen:
            chosen.append(name)
        seen |= set(own[name])
    for name in chosen:
        family = [flags for label, flags in shared.items() if re.fullmatch(label.replace("*", ".*"), name)]
        words = [word for flags in (*family, own[name]) for flag, given in flags.items() for word in (flag, *given)]
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                args = parse(module.Args, {}, words)
            except SystemExit:
                pytest.fail(f"{name}: {errors.getvalue()}")
        assert dataclasses.replace(args, exp_name=name) == module.PRESETS[name].args, name


@pytest.mark.parametrize("script", generate.SCRIPTS)
def test_every_flag_has_a_help_text(script):
    flags = generate.flatten(generate.module_of(script).Args())
    assert [path for path, _, _, cls in flags if not generate.help_of(cls, path.rpartition(".")[2])] == []


def literal_tags(script):
    """Tags that a script names: whole strings, and those with one part filled in."""
    nodes = list(ast.walk(ast.parse((ROOT / "agents" / f"{script}.py").read_text())))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        else:
            continue
        if re.fullmatch(rf"(?:{'|'.join({tag.split('/')[0] for tag in TAGS})})/[\w{{}}]+(?:/{{}})?", text):
            yield text


@pytest.mark.parametrize("script", generate.SCRIPTS)
def test_every_tag_that_a_script_names_is_in_its_table(script):
    listed = {tag.replace("<layer>", "x") for tags in generate.LOGGED[script].values() for tag in tags}
    missing = [
        tag
        for tag in literal_tags(script)
        if not any(re.fullmatch(re.escape(tag).replace(r"\{\}", ".+"), one) for one in listed)
    ]
    assert missing == []


def test_all_tags_of_the_tables_exist_and_each_is_logged_by_a_script():
    logged = {tag for table in generate.LOGGED.values() for tags in table.values() for tag in tags}
    assert logged == set(TAGS)


def test_cells_keep_what_markdown_would_take():
    assert generate.cell("W <- a * b_c | --nap.every 1, `x|y`") == ("W &lt;- a \\* b\\_c \\| `--nap.every` 1, `x\\|y`")


def test_families_are_named_by_the_words_that_all_share():
    assert generate.family_name(["high-utd-low", "high-utd-cyclic"]) == "high-utd-*"
    assert generate.family_name(["nap", "nap-cyclic"]) == "nap*"


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no place for tags"):
        generate.with_parts("# Metrics\n", {"tags": "x"}, ROOT / "docs" / "metrics.md")


def test_stale_page_is_found_and_written(tmp_path, monkeypatch, capsys):
    begin, end = generate.marks("tags")
    page = tmp_path / "metrics.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(generate, "pages", lambda: [page])
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "parts_of", lambda page: {"tags": "new"})
    assert generate.main(["--check"]) == 1 and "old" in page.read_text()
    assert generate.main([]) == 0 and page.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == ["metrics.md", "metrics.md", "all pages are up to date"]
