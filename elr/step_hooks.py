"""Act before and after the update inside `optimizer.step()`, whichever way it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch


class StepHooks:
    """Calls `begin`, `before` and `after` in each step of an optimiser.

    A step that makes its gradients in a closure calls `before` when the closure has returned, without gradients. A step
    that calls the step of its base class, for which torch may run the hooks twice, counts once.

    Args:
        optimizer: gets a pre-hook and a post-hook, until `remove`.
        begin: at the start, also of a step that follows one which an exception has ended.
        before: between the gradients and the update.
        after: after the update.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        begin: Callable[[], None],
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        self._begin, self._before, self._after = begin, before, after
        self._outer: FrameType | None = None  # of the step that runs
        self._nested = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._pre_hook),
            optimizer.register_step_post_hook(self._post_hook),
        ]

    @property
    def removed(self) -> bool:
        """Whether `remove` has been called."""
        return not self._hooks

    def remove(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _pre_hook(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
            raise RuntimeError("optimizer.step() is being captured in a CUDA graph, whose replays would run no hooks")
        if not torch.compiler.is_compiling():  # there are no frames in a compiled step
            if self._outer is not None and _is_running(self._outer):
                self._nested += 1
                return None
            self._outer, self._nested = sys._getframe(1), 0
        self._begin()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimiser
        if closure is None:
            self._before()
            return None

        def then_before() -> Any:
            loss = closure()
            with torch.no_grad():
                self._before()
            return loss

        if len(args) > 1:
            return (args[0], then_before, *args[2:]), kwargs
        return args, {**kwargs, "closure": then_before}

    def _post_hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._nested:
            self._nested -= 1
            return
        self._outer = None
        self._after()


def _is_running(frame: FrameType) -> bool:
    """Whether the function with this frame is one of those that have led here."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None
