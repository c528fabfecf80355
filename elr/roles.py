"""What each parameter of a module is, by the type of the module: a weight, an embedding, a gain, something else."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

SCALABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMALISERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm, _InstanceNorm)
Role = Literal[
    "weight", "embedding", "gain", "offset", "partner", "computed", "other", "unknown_matrix", "unknown_vector"
]
"""partner: scaled together with the module's weight. computed: the weight is computed from it, as in weight
normalisation. other: a bias, one number, a slope of PReLU. unknown_matrix and unknown_vector: the module is of no known
type, so the caller has to say what the parameter is."""
UNKNOWN: tuple[Role, ...] = ("unknown_matrix", "unknown_vector")


def role(module: nn.Module, name: str, parameter: nn.Parameter) -> Role:
    """The role of one parameter.

    Args:
        module: the module that owns it.
        name: its name in the module, as `inventory.own_parameters` has it.
        parameter: it may be lazy.
    """
    matrices = _matrices(module)
    if name in matrices:
        if isinstance(module, EMBEDDINGS):
            return "embedding"
        return "gain" if isinstance(module, NORMALISERS) else "weight"
    if name == "bias" and isinstance(module, NORMALISERS):
        return "offset"
    if name == getattr(type(module), "scaled_with_weight", None):
        return "partner"
    missing = tuple(matrix for matrix in matrices if matrix not in module._parameters)
    if name.startswith(("parametrizations.", *missing)):
        return "other" if "bias" in name else "computed"
    return "other" if _is_left_alone(module, name, parameter) else _unknown(name, parameter)


def _matrices(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a known type that are weights, tables or gains, also where they are missing."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    if isinstance(module, nn.RNNBase):
        return tuple(name for name in module._flat_weights_names if name.startswith("weight_"))
    if isinstance(module, nn.RNNCellBase):
        return "weight_ih", "weight_hh"
    return ("weight",) if isinstance(module, (*SCALABLE, *EMBEDDINGS, *NORMALISERS)) else ()


def _is_left_alone(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether it is known to be neither a weight nor a gain."""
    if isinstance(module, nn.MultiheadAttention) and name in ("bias_k", "bias_v"):  # one more key and value
        return True
    if isinstance(module, nn.PReLU) and name == "weight":
        return True
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "bias" in name
    return parameter.numel() <= 1 or (parameter.ndim < 2 and "bias" in name)


def _unknown(name: str, parameter: nn.Parameter) -> Role:
    lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
    return "unknown_matrix" if lazy or parameter.ndim >= 2 else "unknown_vector"
