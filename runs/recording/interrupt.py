"""Stop at a step boundary on SIGINT or SIGTERM, and with one line instead of a traceback."""

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
    """Inside the block SIGINT and SIGTERM set `requested`; the loop checks it once per step and stops there.

    A second SIGINT raises KeyboardInterrupt at once. The previous handlers are restored on exit. Outside the main
    thread, where Python cannot handle signals, this does nothing and `requested` stays False.
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
            # None: the previous handler was not installed from Python and cannot be restored
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt


def exit_with_one_line(function: Callable[[], object]) -> None:
    """Call `function` at the end of a script: a RunError becomes one line on stderr and exit code 2, Ctrl-C code 130.

    A closed output (`| head`) ends it with one line and exit code 1.

    Raises:
        SystemExit: in these three cases. Any other exception is a bug and keeps its traceback.
    """
    try:
        function()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the buffer would fail again at exit
        print(f"{_script()}: the output was closed", file=sys.stderr)
        raise SystemExit(1) from None
    except RunError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"{_script()}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def fail(message: str) -> None:
    """Print `message` as one line on stderr and exit with code 2.

    Raises:
        SystemExit: always.
    """
    print(f"{_script()}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _script() -> str:
    return Path(sys.argv[0]).name or "python"
