"""A Ray cluster of two nodes on one machine, as a process: prints its address, loses its second node when told to.

    python two_nodes.py CORES_OF_HEAD CORES_OF_OTHER       then "lose" on its standard input; its end ends the cluster

The node is lost as in a power cut: its raylet, its workers and the runs that they started get SIGKILL at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


def descendants(root: int) -> list[int]:
    """A process and all that came from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            print(f"once more: {error}", file=sys.stderr)
    return start()


def main() -> None:
    """Start, wait for orders, end."""
    head, other = map(int, sys.argv[1:])
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster()
    patiently(lambda: cluster.add_node(num_cpus=head, include_dashboard=False, **memory))
    node = patiently(lambda: cluster.add_node(num_cpus=other, **memory))
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "lose" and node:
            lost = [pid for process in node.live_processes() for pid in descendants(process[1].pid)]
            for pid in lost:  # stopped first, so that none has time to react to the death of another
                os.kill(pid, signal.SIGSTOP)
            for pid in lost:
                os.kill(pid, signal.SIGKILL)
            print(f"lost {len(lost)} processes", flush=True)
            node = None
    cluster.shutdown()


if __name__ == "__main__":
    main()
