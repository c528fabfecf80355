"""The state of random generators as data. A restored generator draws what the saved one would have drawn next."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from runs.recording.errors import RunError

if TYPE_CHECKING:
    import torch

    AnyGenerator = np.random.Generator | np.random.RandomState | torch.Generator | random.Random


def rng_state(generator: AnyGenerator) -> dict[str, Any]:
    """The state of a numpy Generator or RandomState, torch.Generator or random.Random, ready for a checkpoint.

    The seed sequence of a numpy Generator, which `spawn` uses, is not part of it: spawn streams at the start.

    Raises:
        ValueError: it is none of these.
    """
    import torch

    if isinstance(generator, np.random.Generator):
        state: Any = generator.bit_generator.state
    elif isinstance(generator, np.random.RandomState):
        state = generator.get_state(legacy=False)
    elif isinstance(generator, torch.Generator):
        state = generator.get_state()
    elif isinstance(generator, random.Random):
        state = generator.getstate()
    else:
        raise ValueError(f"{type(generator).__name__} is not a generator of numpy, torch or random")
    return {"kind": _kind(generator), "state": state}


def restore_rng(generator: AnyGenerator, saved: dict[str, Any]) -> None:
    """Set `generator` in place to a state taken by `rng_state`.

    Raises:
        RunError: the state belongs to another kind of generator.
    """
    if _kind(generator) != saved["kind"]:
        raise RunError(f"the saved random state is that of a {saved['kind']}, not of a {_kind(generator)}")
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = saved["state"]
    elif isinstance(generator, random.Random):
        generator.setstate(saved["state"])
    else:
        generator.set_state(saved["state"])


def _kind(generator: AnyGenerator) -> str:
    import torch

    if isinstance(generator, np.random.Generator):
        return f"numpy.random.Generator({type(generator.bit_generator).__name__})"
    if isinstance(generator, np.random.RandomState):
        return f"numpy.random.RandomState({generator.get_state(legacy=False)['bit_generator']})"
    if isinstance(generator, torch.Generator):
        return f"torch.Generator({generator.device.type})"
    return "random.Random"
