"""Every module and parameter of a network by name, and the parameters that a caller names.

torch.compile, DataParallel and DistributedDataParallel put a module around a network or a part of it. Names here are
those of the network without such wrappers, so they stay the same whether it is compiled or not.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from elr.arguments import listed
from elr.roles import Role, role


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel or DistributedDataParallel; the module itself without them."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif _is_a(module, "torch._dynamo", "OptimizedModule"):  # importing its class takes a second
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def _is_a(module: nn.Module, package: str, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.startswith(package) for cls in type(module).__mro__)


def named_modules(network: nn.Module, *, every_name: bool = False) -> dict[str, nn.Module]:
    """As nn.Module.named_modules, without wrappers and their part of the names.

    Args:
        network: "" is its own name.
        every_name: a module that is registered several times under each of its names, not the first alone.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(name: str, wrapped: nn.Module, above: frozenset[int]) -> None:
        module = unwrapped(wrapped)
        if id(module) in (above if every_name else seen):
            return
        seen.add(id(module))
        found[name] = module
        for child_name, child in module._modules.items():
            # What computes a parametrised weight counts as the module's own parameters, see `own_parameters`.
            if child is not None and not (child_name == "parametrizations" and parametrize.is_parametrized(module)):
                visit(f"{name}.{child_name}" if name else child_name, child, above | {id(module)})

    visit("", network, frozenset())
    return found


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of one module, not of its submodules, by name in the module.

    Those from which a parametrised weight is computed are included, such as "parametrizations.weight.original0".
    """
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if parametrize.is_parametrized(module):
        computing: nn.Module = module.parametrizations  # type: ignore[assignment]
        own |= {f"parametrizations.{name}": parameter for name, parameter in computing.named_parameters()}
    return own


class Owned(NamedTuple):
    """One parameter of one module."""

    name: str
    """The name of the parameter in the network."""
    module_name: str
    """The name of the module in the network."""
    module: nn.Module
    """The module that owns the parameter."""
    own_name: str
    """The name of the parameter in this module."""
    tensor: nn.Parameter
    """The parameter. Several modules may share one."""

    @property
    def place(self) -> tuple[int, str]:
        """Tells parameters of modules apart, also where two are one tensor or one module has two names."""
        return id(self.module), self.own_name

    @property
    def role(self) -> Role:
        """What it is, by the type of its module."""
        return role(self.module, self.own_name, self.tensor)

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight, or may be one."""
        return self.role in ("weight", "embedding", "computed", "unknown_matrix")

    @property
    def layer(self) -> str:
        """The name under which it is held: of its module if the parameter is called `weight`."""
        return self.module_name if self.own_name == "weight" else self.name


class Inventory:
    """The modules and parameters of a network.

    Attributes:
        modules: as `named_modules` returns them.
        parameters: each parameter of each module, in registration order; one tensor several times if modules share it.

    Raises:
        ValueError: the network is sharded by FullyShardedDataParallel.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules = named_modules(network)
        for name, module in self.modules.items():
            if _is_a(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
                raise ValueError(
                    f"{name or 'the network'} is a FullyShardedDataParallel, where each process holds a part of a "
                    "weight and none knows its norm: use DistributedDataParallel"
                )
        self.parameters = _owned(self.modules)
        self._under_every_name = _owned(named_modules(network, every_name=True))

    def under(self, name: str) -> list[Owned]:
        """The parameter of this name, or all parameters of the module of this name and of its submodules."""
        return [p for p in self._under_every_name if not name or p.name == name or p.name.startswith(f"{name}.")]

    def find(self, argument: str, names: tuple[str, str | None]) -> list[Owned]:
        """The parameters of these names: one, if the second name is None, or two.

        Raises:
            ValueError: there is none of a name; the message starts with the argument that named it.
        """
        found = []
        for name in names:
            if name is not None:
                owned = [p for p in self._under_every_name if p.name == name]
                if not owned:
                    known = listed(p.name for p in self.parameters)
                    raise ValueError(f"{argument}: {name!r} is not a parameter; there are {known}")
                found.append(owned[0])
        return found


def _owned(modules: dict[str, nn.Module]) -> list[Owned]:
    return [
        Owned(f"{module_name}.{name}" if module_name else name, module_name, module, name, parameter)
        for module_name, module in modules.items()
        for name, parameter in own_parameters(module).items()
    ]


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether it is a DTensor (FSDP2, tensor parallelism), of which this process holds a part."""
    return hasattr(parameter, "device_mesh") and hasattr(parameter, "placements")
