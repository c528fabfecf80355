"""Code that the documents show, so that tests can run it."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(document: str, heading: str) -> list[str]:
    """The Python blocks below a heading of a Markdown file, down to the next heading of its level or above.

    Raises:
        LookupError: there is no such heading, or no block below it.
    """
    text = (ROOT / document).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.M)
    if found is None:
        raise LookupError(f"{document} has no heading {heading!r}")
    outside = re.sub(
        r"^```.*?^```", lambda block: re.sub(r"^#", " ", block.group(), flags=re.M), text, flags=re.M | re.S
    )
    following = re.compile(rf"^#{{1,{len(found.group(1))}}} ", re.M).search(outside, found.end())
    section = text[found.end() : following.start() if following else len(text)]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    if not blocks:
        raise LookupError(f"{document}, {heading!r} shows no Python")
    return blocks


def run(code: str, **names: object) -> dict[str, object]:
    """Execute a block with these names given; what it has defined."""
    namespace: dict[str, object] = {"__name__": "__main__", **names}
    exec(compile(code, "<document>", "exec"), namespace)
    return namespace
