"""The package's front page: its docstring names every module, and its exports exist and cost only torch and numpy."""

import ast
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import elr

SOURCE = Path(elr.__file__).read_text()
MODULES = [module.name for module in pkgutil.iter_modules(elr.__path__)]


def test_docstring_names_every_module_and_no_other() -> None:
    listed = re.findall(r"^    (\w+)  +\S", elr.__doc__, re.M)
    assert sorted(listed) == sorted(MODULES)


def test_docstring_of_fast_names_every_module() -> None:
    from elr import fast

    assert all(f"`{module.name}`" in fast.__doc__ for module in pkgutil.iter_modules(fast.__path__))


def test_docstring_of_integrations_names_every_framework() -> None:
    from elr import integrations

    listed = re.findall(r"^    (\w+)  +\S", integrations.__doc__, re.M)
    assert listed == [module.name for module in pkgutil.iter_modules(integrations.__path__) if "_" not in module.name]


@pytest.mark.parametrize("name", elr.__all__)
def test_export_exists_and_has_a_sentence_and_a_docstring(name: str) -> None:
    assert getattr(elr, name).__doc__
    assert re.search(rf'^    "{name}",  # \S+ \S+', SOURCE, re.M)


def test_nothing_is_imported_without_being_exported() -> None:
    imported = re.findall(r"^from elr\.\w+ import (.+)$", SOURCE, re.M)
    assert sorted(name for names in imported for name in names.split(", ")) == sorted(elr.__all__)


def test_example_runs() -> None:
    """The lines of the docstring, with a network and data."""
    import torch
    from torch import nn

    example = elr.__doc__.split("\n\n")[1]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 6, generator=generator), torch.randn(32, 2, generator=generator)
    network = nn.Sequential(nn.Linear(6, 16, bias=False), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
    names = {name: getattr(elr, name) for name in elr.__all__}
    names |= {"network": network, "batch": x, "loss": nn.MSELoss()}
    names["stream"] = [(x, y, task_changed) for task_changed in (False, False, True, False)]
    names["optimizer"] = torch.optim.Adam(network.parameters(), lr=1e-3)
    norm = float(network[0].weight.detach().norm())
    before = network[0].weight.detach().clone()
    printed: list[dict[str, float]] = []
    names["print"] = printed.append
    exec("\n".join(line.removeprefix("    ") for line in example.splitlines()), names)
    assert float(network[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-6)
    assert not torch.equal(before, network[0].weight)
    assert names["rewarming"].rate == names["rewarming"].schedule(1)  # restarted after update 3, then one update
    assert [bool(scalars) for scalars in printed] == [True, False, False, False]  # update 1, then every 100


def test_elr_imports_only_torch_and_numpy() -> None:
    """But for the integrations, and the kernels that are compiled where it is asked for."""
    extras = ("integrations/", "fast/minatar_kernels.py")
    folder = Path(elr.__file__).parent
    files = [path for path in folder.rglob("*.py") if not path.relative_to(folder).as_posix().startswith(extras)]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"elr", "torch", "numpy"}


def test_no_module_is_long() -> None:
    folder = Path(elr.__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("integrations/*.py")]
    lengths = {path.name: len(path.read_text().splitlines()) for path in files}
    lengths.pop("flags.py")  # one group of flags after the other
    assert {name: length for name, length in lengths.items() if length > 365} == {}
