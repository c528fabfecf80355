"""What MkDocs does besides reading docs/: pages from elsewhere in the repository, and links that lead out of docs/.

The same links work in a browser of the repository and on the site. A link to a file outside docs/ leads to its page:

* CONTRIBUTING.md and CHANGELOG.md are pages of the site,
* `docs/notebook.ipynb` is a page with its text, its code and its stored outputs,
* `runs/results/` is its folder `results/`, files of numbers included,
* a source file, or a folder, is a page of the site that shows it.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS, RESULTS = ROOT / "docs", ROOT / "runs" / "results"
PAGES = {
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    DOCS / "notebook.ipynb": "notebook.md",
}
FENCE = re.compile(r"(^(`{3,})[^\n]*\n.*?^\2[ \t]*$)", re.M | re.S)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
WIDE = ("claims.md", "elr-cases.md")
"""pages of one wide table, which get the room of the table of contents"""
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "sh", ".cff": "yaml", ".json": "json"}


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of a Markdown text, and whether each is outside fenced code."""
    parts = FENCE.split(text)
    for i in range(0, len(parts), 3):
        yield parts[i], True
        if i + 1 < len(parts):
            yield parts[i + 1], False


def targets(text: str, folder: Path) -> set[Path]:
    """Files and folders to which the relative links of a text in this folder lead."""
    links = {link for part, outside in prose(text) if outside for link in LINK.findall(part)}
    return {(folder / link).resolve() for link in links}


def uri_of(path: Path) -> str:
    """Where the site has a file or folder of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.is_dir() and (path / "index.md").exists():
        path = path / "index.md"
    if path.is_relative_to(DOCS) and path.suffix != ".py":
        return path.relative_to(DOCS).as_posix()
    if path == RESULTS:
        return "results.md"
    if path.is_relative_to(RESULTS):
        return f"results/{path.relative_to(RESULTS).as_posix()}"
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def fenced(text: str, language: str) -> str:
    """A text as fenced code."""
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def notebook_page(notebook: str) -> str:
    """The page of a notebook. In the metadata of a cell, `alt` is the alternative text of its picture, and `scrolled`
    says that its printed lines are shown in a box.
    """
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source, metadata = "".join(cell["source"]), cell["metadata"]
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output["output_type"] == "stream":
                printed = fenced("".join(output["text"]), "text")
                boxed = f'<div class="scrolled" markdown>\n\n{printed}\n</div>'
                parts.append(boxed if "scrolled" in metadata else printed)
            elif picture := data.get("image/png"):
                alt = html.escape(metadata["alt"])
                parts.append(f'<img alt="{alt}" src="data:image/png;base64,{"".join(picture.split())}">')
    return "\n\n".join(parts) + "\n"


def text_of(page: Path) -> str:
    """A page as Markdown."""
    text = page.read_text(encoding="utf-8")
    return notebook_page(text) if page.suffix == ".ipynb" else text


def shown(path: Path) -> str:
    """The page of a source file, or of a folder."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in LANGUAGES or (one / "__init__.py").exists())
        shows = "- `{}`" if path.is_relative_to(ROOT / "tests") else "- [`{}`]({})"
        listed = "\n".join(shows.format(one.relative_to(ROOT).as_posix(), one.name) for one in files)
        return f"{UNSEARCHED}# `{name}/`\n\n{listed}\n"
    text = path.read_text(encoding="utf-8")
    return f"{UNSEARCHED}# `{name}`\n\n{fenced(text, LANGUAGES.get(path.suffix, ''))}"


def on_files(files: Files, config: Any) -> Files:
    """Add what the pages need from outside docs/."""
    written = [DOCS / file.src_uri for file in files.documentation_pages()]
    results = [path for path in sorted(RESULTS.iterdir()) if path.is_file()]
    for path in [*results, *PAGES]:
        notebook = path.suffix == ".ipynb"
        source = {"content": text_of(path)} if notebook else {"abs_src_path": str(path)}
        files.append(File.generated(config, uri_of(path), **source))
    pages = [*written, *PAGES, *(path for path in results if path.suffix == ".md")]
    wanted = set().union(*(targets(text_of(page), page.parent) for page in pages))
    sources: set[Path] = set()
    while missing := {one for one in wanted if uri_of(one).startswith("source/") and one.exists()} - sources:
        sources |= missing
        for folder in (one for one in missing if one.is_dir()):
            wanted |= targets(shown(folder), folder)
    for path in sorted(sources):
        files.append(File.generated(config, uri_of(path), content=shown(path)))
    return files


def origin(src_uri: str) -> Path:
    """The file or folder of the repository that a page of the site shows."""
    for path, uri in PAGES.items():
        if uri == src_uri:
            return path
    if src_uri.startswith("source/"):
        return ROOT / src_uri.removeprefix("source/").removesuffix(".md")
    page = DOCS / src_uri  # docs/results/ and runs/results/ share a folder of the site
    return page if page.exists() else RESULTS / src_uri.removeprefix("results/")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the pages of the site, indent nested lists by four spaces, link pictures to their full size."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    source = origin(page.file.src_uri)
    folder = source if source.is_dir() else source.parent

    def lead(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if not target.is_relative_to(ROOT):
            return match[0]
        return os.path.relpath(uri_of(target), os.path.dirname(page.file.src_uri) or ".")

    def converted(text: str) -> str:
        text = re.sub(r"^ {2,3}(?=[-*] )", "    ", LINK.sub(lead, text), flags=re.M)
        return re.sub(r"^!\[[^\]]*\]\(([^)]+)\)$", r"[\g<0>](\1)", text, flags=re.M)

    return "".join(converted(part) if outside else part for part, outside in prose(markdown))
