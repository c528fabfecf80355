"""Rules that hold for the tree as a whole: what imports what, what is declared, and what the documents promise."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_imports as imports

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest itself depends on tomli there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
OURS = ("elr", "envs", "runs", "agents")
# Import names of which the distribution is called otherwise, or that need one more than their own.
DISTRIBUTIONS = {"PIL": "pillow", "ale_py": "ale-py", "sbx": "sbx-rl", "torch.utils.tensorboard": "tensorboard"}


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in imports.sources(folder)]


def name_of(requirement: str) -> str:
    """The distribution that a requirement asks for."""
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")


def imports_of(path: Path) -> list[str]:
    """Everything that a file of ours imports."""
    return imports.imports_of(path.read_text(), imports.package_of(path))


def third_party(names: list[str]) -> set[str]:
    """Distributions needed by a list of imported names."""
    needed = {DISTRIBUTIONS[prefix] for name in names for prefix in DISTRIBUTIONS if imports.inside(name, prefix)}
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {*OURS, "tests"}
    return needed | {DISTRIBUTIONS.get(root, root).replace("_", "-") for root in roots}


def code_lines(document: str) -> list[str]:
    """Lines inside the fenced blocks of a Markdown text."""
    return [
        line for block in re.findall(r"^```[^\n]*\n(.*?)^```", document, re.M | re.S) for line in block.splitlines()
    ]


def test_every_import_is_declared():
    project = pyproject()["project"]
    declared = {name_of(requirement) for requirement in project["dependencies"]}
    extras = {
        extra: {name_of(requirement) for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
    }
    needed = {path: third_party(imports_of(path)) for path in sources("elr", "envs", "agents", "runs")}
    undeclared = {str(path.relative_to(ROOT)): extra for path, names in needed.items() if (extra := names - declared)}
    drawing = {"runs/figures/style.py", "runs/training/picture.py"}  # imported when they draw
    assert undeclared.pop("runs/sweeps/on_ray.py") <= extras["ray"]  # imported with --engine ray
    assert undeclared.pop("runs/recording/weights_and_biases.py") <= extras["track"]  # imported with --track
    assert undeclared.pop("elr/fast/minatar_kernels.py") <= extras["fast"]  # imported with --gradient compiled
    for path in [path for path in undeclared if path.startswith("runs/benchmarks/peer_")]:
        assert undeclared.pop(path) <= extras["peers"], path
    frameworks = [path for path in undeclared if path.startswith("elr/integrations/") or path.endswith("_elr.py")]
    for path in frameworks:
        assert undeclared.pop(path) <= extras["integrations"], path
    assert set(undeclared) <= drawing and set().union(*undeclared.values()) <= extras["plots"]
    assert {"torch", "numpy"} <= set.union(*needed.values())  # the walk sees imports at all


def test_torch_tensorboard_counts_as_tensorboard():
    assert third_party(["torch.utils.tensorboard.SummaryWriter", "os.path", "elr"]) == {"torch", "tensorboard"}
    assert third_party(["torch.nn", "ale_py"]) == {"torch", "ale-py"}


def test_every_test_import_is_declared():
    project = pyproject()["project"]
    declared = {name_of(r) for r in (*project["dependencies"], *project["optional-dependencies"]["dev"])}
    inside = sources("tests/integrations")  # skipped where their framework is missing
    needed = set().union(*(third_party(imports_of(path)) for path in sources("tests") if path not in inside))
    extra = {name_of(r) for r in project["optional-dependencies"]["integrations"]}
    assert set().union(*(third_party(imports_of(path)) for path in inside)) - declared <= extra
    # ray, wandb, jax: in tests that are skipped without them
    assert needed - declared <= {"tomli", "tomllib", "ray", "wandb", "jax"}  # tomllib is there from Python 3.11 on


def test_dependencies_have_lower_bounds_and_no_upper_ones():
    project = pyproject()["project"]
    extras = (requirement for group in project["optional-dependencies"].values() for requirement in group)
    odd = [
        r for r in (*project["dependencies"], *extras) if not re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9-]+\])?>=[0-9.]+", r)
    ]
    assert odd == []


def test_every_file_says_what_it_is():
    silent = [path for path in sources(*OURS, "tests") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_file_names_of_tests_are_unique():
    names = [path.name for path in sources("tests")]
    assert len(names) == len(set(names))


def test_the_readme_and_ci_run_the_same_test_command():
    commands = [line for line in code_lines((ROOT / "README.md").read_text()) if line.endswith("/pytest -n auto")]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_code_lines_skips_prose():
    assert code_lines("a/pytest\n```sh\nb/pytest\n```\nc/pytest\n```\nd\n```\n") == ["b/pytest", "d"]


def test_no_large_or_binary_package_is_committed():
    """What a stray pip download leaves, for one; pictures and results stay small."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > 1_000_000 or name.endswith(".whl")} == {}


def test_the_version_is_the_same_everywhere():
    version = pyproject()["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1) == version


def test_the_records_for_citing_agree():
    project = pyproject()["project"]
    citation, zenodo = (ROOT / "CITATION.cff").read_text(), json.loads((ROOT / ".zenodo.json").read_text())
    assert f"\nlicense: {project['license']}\n" in citation and zenodo["license"] == project["license"]
    assert f'\ntitle: "{zenodo["title"]}"\n' in citation
    assert [one["name"] for one in zenodo["creators"]] == [one["name"] for one in project["authors"]]
    assert re.findall(r"^  - (\S.*)$", citation.split("keywords:")[1].split("type:")[0], re.M) == zenodo["keywords"]
    cited = {one["identifier"].removeprefix("arXiv:") for one in zenodo["related_identifiers"]}
    assert cited == set(re.findall(r"arxiv\.org/abs/([\d.]+)", citation))


def test_the_workflow_of_the_host_runs_ci():
    assert "\n      - run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "runs" / "results").glob("*.md")),
]


def outside_code(document: str) -> str:
    """A Markdown text without its fenced blocks."""
    return re.sub(r"^```[^\n]*\n.*?^```", "", document, flags=re.M | re.S)


def anchors(document: str) -> set[str]:
    """Anchors of its headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+?)$", outside_code(document), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(document):
    text = document.read_text()
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", outside_code(text)):
        target = (document.parent / link).resolve() if link else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pictures_have_an_alternative_text(document):
    assert re.findall(r"!\[\s*\]\([^)]*\)", outside_code(document.read_text())) == []


def test_anchors_are_those_of_github():
    text = "# Text against text, text against figure\n## `elr` in [a loop](x.md): 2.5\n```\n# no heading\n```\n"
    assert anchors(text) == {"text-against-text-text-against-figure", "elr-in-a-loop-25"}


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r"^ +- .*?: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == pages | {"contributing.md", "changelog.md", "notebook.md"}  # docs/hooks.py adds these


def test_the_site_loads_nothing_from_elsewhere():
    text = (ROOT / "mkdocs.yml").read_text() + (ROOT / "docs" / "assets" / "extra.css").read_text()
    assert "  font: false\n" in text and not re.search(r"https?://|analytics", text)


@pytest.mark.parametrize("document", ["README.md", "docs/method.md"])
def test_algorithm_1_is_shown_as_it_stands_in_the_script(document):
    text, script = ((ROOT / path).read_text() for path in (document, "agents/dqn_minatar.py"))
    shown = re.search(r"```python\nmeter(?:.|\n)*?```", text).group(0).splitlines()[1:-1]
    lines = [line.strip() for line in script.splitlines()]
    start = lines.index(shown[0])
    assert lines[start : start + len(shown)] == shown


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"```.*?```|<!-- claims.*<!-- end of claims -->", "", text, flags=re.S)
    assert len(prose.split()) <= 1_200
