"""docs/elr-cases.md: each row of its tables names tests, and they exist."""

import re

import pytest

from tests.documents import ROOT

PAGE = (ROOT / "docs" / "elr-cases.md").read_text()
FILES = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_cases.py"}


def rows() -> list[list[str]]:
    lines = [line.strip().strip("|") for line in PAGE.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in cells if row[-1] not in ("test", "---")]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:50])
def test_row_names_tests_that_exist(row):
    quoted = [name for name in re.findall(r"`([^`]+)`", row[-1])]
    functions = [name for text in quoted for name in re.findall(r"\btest_\w+(?!\w|\.py)", text)]
    ids = [name for text in quoted for name in re.findall(r"\[(\w+)\]", text)]
    assert functions or ids, "no test is named"
    for name in functions:
        assert any(re.search(rf"^def {name}\w*\(", text, re.M) for text in FILES.values()), name
    for name in ids:
        assert any(re.search(rf"\b{name}\b", text) for text in FILES.values()), name


def test_there_are_rows_of_all_three_tables():
    assert len(rows()) > 70
