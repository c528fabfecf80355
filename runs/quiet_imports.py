"""Ctrl-C while a script imports torch ends it with one line and exit code 130, as later, and not with a traceback.

A script imports this first. It needs only the standard library. Imported by anything but the script that is run, it
does nothing; `exit_with_one_line` takes over when the script's `main` begins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType


def _imported_by_the_script() -> bool:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if not frame.f_code.co_filename.startswith("<frozen importlib"):
            name: str = frame.f_globals.get("__name__", "")
            if name != __name__:
                return name == "__main__"
    return False


def _quiet(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
    os._exit(130)  # nothing has been opened yet


if _imported_by_the_script():
    sys.excepthook = _quiet
