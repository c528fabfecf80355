"""Run a command that gets SIGTERM when its parent process dies. Ray's workers start runs through this program.

    python runs/sweeps/die_with_parent.py PARENT COMMAND ...

On SIGTERM a run writes a checkpoint and stops. This is a separate program because code between fork and exec is not
safe in a worker with several threads. Ray blocks SIGINT in all its processes, and children inherit that, so SIGINT is
unblocked here. Linux only; elsewhere the command runs on when its parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Ask the kernel for SIGTERM at the death of `parent`, then become `command`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above: no signal will come
            raise SystemExit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
