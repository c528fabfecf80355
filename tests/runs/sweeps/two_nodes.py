"""A Ray cluster of two nodes on one machine. It prints its address, and kills its second node on request.

    python two_nodes.py CORES_OF_HEAD CORES_OF_OTHER       then "lose" on standard input; the cluster ends with it

As in a power cut, the node's raylet, its workers and the runs that they started get SIGKILL at once.
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
    """A process and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = [root]
    for process in family:
        family += [child for child, parent in parents.items() if parent == process]
    return family


def with_retries(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            print(f"retrying: {error}", file=sys.stderr)
    return start()


def main() -> None:
    """Start the cluster, obey standard input, shut down."""
    head, other = map(int, sys.argv[1:])
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster()
    with_retries(lambda: cluster.add_node(num_cpus=head, include_dashboard=False, **memory))
    node = with_retries(lambda: cluster.add_node(num_cpus=other, **memory))
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "lose" and node:
            lost = [pid for process in node.live_processes() for pid in descendants(process[1].pid)]
            for pid in lost:  # stopped first, so that none can react to the death of another
                os.kill(pid, signal.SIGSTOP)
            for pid in lost:
                os.kill(pid, signal.SIGKILL)
            print(f"lost {len(lost)} processes", flush=True)
            node = None
    cluster.shutdown()


if __name__ == "__main__":
    main()
