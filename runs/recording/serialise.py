"""Convert states to plain data that a weights-only load accepts, and back without loss."""

from __future__ import annotations

from typing import Any

import numpy as np

_ARRAY, _SCALAR = "__numpy_array__", "__numpy_scalar__"


def to_plain(obj: Any, where: str = "state") -> Any:
    """Turn numpy arrays and scalars into dicts of tensors; keep dict, list, tuple, str, numbers, None and tensors.

    Tensors are detached. Views are copied, so that a slice is not saved with its whole storage.

    Raises:
        ValueError: a value of another type, or a dict with a reserved key; the message says where in the state.
    """
    from torch import Tensor

    if obj is None or type(obj) in (bool, int, float, str):
        return obj
    if isinstance(obj, Tensor):
        obj = obj.detach()
        return obj.clone() if obj.untyped_storage().nbytes() > obj.numel() * obj.element_size() else obj
    if isinstance(obj, np.ndarray):
        return _plain_array(obj, where)
    if isinstance(obj, np.generic):
        return {_SCALAR: _plain_array(np.asarray(obj), where)}
    if isinstance(obj, dict):
        return {_key(key, where): to_plain(value, f"{where}[{key!r}]") for key, value in obj.items()}
    if type(obj) in (list, tuple):
        return type(obj)(to_plain(value, f"{where}[{i}]") for i, value in enumerate(obj))
    raise ValueError(
        f"{where} is a {type(obj).__name__}, which a checkpoint cannot hold; "
        "turn it into dicts, lists, tuples, strings, numbers, arrays or tensors first"
    )


def from_plain(obj: Any) -> Any:
    """The inverse of `to_plain`; arrays keep dtype, shape, byte order and every bit."""
    if isinstance(obj, dict):
        if _SCALAR in obj:
            return from_plain(obj[_SCALAR])[()]
        if _ARRAY in obj:
            flat = np.frombuffer(bytearray(obj["bytes"].numpy()), dtype=np.dtype(obj[_ARRAY]))
            return flat.reshape(obj["shape"])
        return {key: from_plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(from_plain(value) for value in obj)
    return obj


def _key(key: Any, where: str) -> Any:
    if type(key) not in (bool, int, float, str) or key in (_ARRAY, _SCALAR):
        raise ValueError(f"{where} has the key {key!r}; keys are strings or numbers, without {_ARRAY} and {_SCALAR}")
    return key


def _plain_array(array: np.ndarray[Any, Any], where: str) -> dict[str, Any]:
    import torch

    if array.dtype.hasobject or array.dtype.names is not None:
        raise ValueError(f"{where} is an array of {array.dtype}, which has no exact plain form; split it into columns")
    shared = np.ascontiguousarray(array).reshape(-1)
    raw = (shared if shared.flags.writeable else shared.copy()).view(np.uint8)  # no copy of a large replay buffer
    return {_ARRAY: array.dtype.str, "shape": tuple(array.shape), "bytes": torch.from_numpy(raw)}
