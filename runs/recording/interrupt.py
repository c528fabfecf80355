"""Stopping: at a step boundary when asked to, and with one line instead of a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from runs.recording.errors import RunError


class StopOnSignal:
    """While entered, SIGINT and SIGTERM set `requested`; the loop looks at it once per step and stops there.

    A second SIGINT raises KeyboardInterrupt at once. The former handlers come back on exit. Outside the main thread,
    where Python cannot handle signals, it does nothing and `requested` stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            # None: the former handler was not installed from Python and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt


def exit_with_one_line(function: Callable[[], object]) -> None:
    """Call `function` as a script's last act: a RunError becomes one line on stderr and exit code 2, Ctrl-C code 130.

    Output that nobody reads any more (`| head`) ends it with one line and exit code 1.

    Raises:
        SystemExit: in those three cases. Any other exception is a defect and keeps its traceback.
    """
    try:
        function()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered would fail again at the exit
        print(f"{_script()}: nobody reads the output any more", file=sys.stderr)
        raise SystemExit(1) from None
    except RunError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"{_script()}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def fail(message: str) -> None:
    """Print `message` as one line on stderr and leave with exit code 2.

    Raises:
        SystemExit: always.
    """
    print(f"{_script()}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _script() -> str:
    return Path(sys.argv[0]).name or "python"
