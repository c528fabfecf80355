"""Which package may import which: every import of every file, by its syntax tree."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("elr", "envs", "runs", "agents", "tests")
MAY_IMPORT = {
    "elr": ("elr",),
    "envs": ("envs",),
    "runs.recording": ("runs.recording",),
    "runs.training": ("runs.recording", "runs.training", "runs.sweeps.seeds"),  # the last for --seeds alone
    "runs": ("runs", "elr", "envs"),
    "agents": ("elr", "envs", "runs.recording", "runs.training", "runs.quiet_imports"),
}
"""What each room may import of ours. The longest name that fits a file counts. A script never imports another one."""


def sources(folder):
    logs = ROOT / "runs" / "logs"
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if logs not in path.parents]


def module_of(path):
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(nodes, package):
    """Absolute dotted names of everything that the statements import; `from a import b` counts as a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(text, package):
    """Everything that a file imports, also inside functions."""
    return list(imported(ast.walk(ast.parse(text)), package))


def imports_when_imported(text, package):
    """What importing a file imports at once: its functions and its `if TYPE_CHECKING` blocks do not count."""

    def statements(nodes):
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from statements(node.orelse)
                continue
            yield node
            yield from statements(ast.iter_child_nodes(node))

    return list(imported(statements(ast.parse(text).body), package))


def inside(name, package):
    return f"{name}.".startswith(f"{package}.")


def forbidden(names, module):
    """Imports of ours that the rules do not allow a module."""
    room = max((room for room in MAY_IMPORT if inside(module, room)), key=len)
    ours = [name for name in names if name.split(".")[0] in PACKAGES]
    return [name for name in ours if not any(inside(name, allowed) for allowed in MAY_IMPORT[room])]


def package_of(path):
    return ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("folder", ["elr", "envs", "runs", "agents"])
def test_files_import_only_what_the_rules_allow(folder):
    files = sources(folder)
    assert files, f"{folder}/ has no Python file"
    found = {path: forbidden(imports_of(path.read_text(), package_of(path)), module_of(path)) for path in files}
    assert {str(path.relative_to(ROOT)): names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("elr.flags", "import envs", ["envs"]),
        ("elr.flags", "from elr.schedules import Cosine", []),
        ("elr.flags", "from .schedules import Cosine", []),
        ("elr.flags", "from ..envs import minatar", ["envs.minatar"]),
        ("elr.fast.flat_adam", "from ..schedules import Cosine", []),
        ("elr.flags", "from runs.recording import reject_unused", ["runs.recording.reject_unused"]),
        ("envs.catch", "def f():\n    import elr.projection", ["elr.projection"]),
        ("runs.recording.tags", "from runs.training import Session", ["runs.training.Session"]),
        ("runs.recording.tags", "from runs.recording.files import AppendFile", []),
        ("runs.training.session", "from runs.recording import Run", []),
        ("runs.training.session", "from runs.sweeps.experiment import Job", ["runs.sweeps.experiment.Job"]),
        ("runs.training.session", "from runs.sweeps.seeds import run_seeds", []),
        ("runs.training.session", "from elr.probe import Probe", ["elr.probe.Probe"]),
        ("runs.benchmarks.parts", "from elr.probe import Probe", []),
        ("runs.benchmarks.parts", "from agents import dqn_minatar", ["agents.dqn_minatar"]),
        ("runs.benchmarks.parts", "from tests.agents import scripts", ["tests.agents.scripts"]),
        ("agents.dqn_minatar", "from runs import recording", []),
        ("agents.dqn_minatar", "from runs import recordings", ["runs.recordings"]),
        ("agents.dqn_minatar", "from runs.analysis import curves", ["runs.analysis.curves"]),
        ("agents.dqn_atari", "from agents.dqn_minatar import QNetwork", ["agents.dqn_minatar.QNetwork"]),
    ],
)
def test_rules_recognise_each_form_of_import(module, text, expected):
    assert forbidden(imports_of(text, module.rpartition(".")[0]), module) == expected


def test_elr_needs_only_torch_and_numpy_except_inside_a_framework():
    by_file = {path: imports_of(path.read_text(), package_of(path)) for path in sources("elr")}
    roots = {path: {name.split(".")[0] for name in names} for path, names in by_file.items()}
    fast = {"minatar_kernels": {"numba"}}  # an extra; imported where it is asked for alone
    frameworks = {"sb3": {"stable_baselines3", "gymnasium"}, "lightning": {"lightning", "pytorch_lightning"}}
    for path, names in roots.items():
        allowed = frameworks.get(path.stem.split("_")[0], set()) if path.parent.name == "integrations" else set()
        allowed |= fast.get(path.stem, set()) if path.parent.name == "fast" else set()
        assert names - set(sys.stdlib_module_names) - {"elr"} <= {"torch", "numpy"} | allowed, path


def test_nothing_in_elr_imports_the_integrations():
    for path in sources("elr"):
        if path.parent.name != "integrations":
            names = imports_of(path.read_text(), package_of(path))
            assert not [name for name in names if inside(name, "elr.integrations")], path


def test_recording_does_not_import_torch_at_import():
    for path in sources("runs/recording"):
        names = imports_when_imported(path.read_text(), package_of(path))
        assert not [name for name in names if inside(name, "torch")], path


def test_imports_in_functions_and_for_types_do_not_count_as_imports_at_import():
    assert imports_when_imported("if TYPE_CHECKING:\n    import torch\n", "x") == []
    assert imports_when_imported("class C:\n    def g(self):\n        import torch\n", "x") == []
    assert imports_when_imported("class C:\n    import torch.nn\n", "x") == ["torch.nn"]
    assert imports_when_imported("try:\n    import torch\nexcept ImportError:\n    pass\n", "x") == ["torch"]
