"""Become a command that is asked to end when its parent dies; Ray's workers start runs through this.

    python runs/tethered.py PARENT COMMAND ...

The signal is SIGTERM, so that a run writes a checkpoint first. A program of its own, because code between fork and exec
is not safe in a worker that has other threads. Ray blocks SIGINT in all its processes, and children would inherit that:
here it is let through again. Linux only; elsewhere the command runs untethered.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tether this process to `parent`, then become `command`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above, and will not be noticed any more
            raise SystemExit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
