"""The same jobs on a Ray cluster: a task for each, which starts the run's process on its node and waits for it.

    ray start --head --port=6379                      on one machine, then
    ray start --address=HEAD:6379                     on each other one, as Ray's documentation says
    python -m runs run fig3 --scale paper --engine ray --address auto

Ray keeps the queue, the cores and the shares of GPUs, and gives the task of a node that died to another. What the task
finds there it reads off the run directory, which must therefore lie on a file system that every node sees: each task
looks for a file that this process has written. The run's process is tethered to the task's: if a worker is killed, its
run writes a checkpoint and stops, and the task's next attempt waits until it has.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs.executing import News, execute
from runs.experiment import Job
from runs.recording import RunError, StopOnSignal
from runs.recording.files import failures_named

_NODE_DEATHS = 10  # attempts that a job may lose with its node; crashes of its own process count as --retries


class Board:
    """The actor that tasks tell their news, and the id of their node; it stands on the launcher's node."""

    def __init__(self) -> None:
        self._news: list[tuple[News, str]] = []

    def tell(self, news: News, node: str) -> None:
        """Add news."""
        self._news.append((news, node))

    def take(self) -> list[tuple[News, str]]:
        """All that was told since the last call."""
        news, self._news = self._news, []
        return news


def bring_to_its_end(job: Job, retries: int, token: Path, content: str, board: Any) -> News:
    """What a task does, on its node.

    Args:
        job: what to run.
        retries: as for `execute`.
        token: a file beside the run directories.
        content: what it holds, if this is the file system that the launcher sees.
        board: the actor to tell.
    """
    host, node = platform.node(), _node_id()
    if not token.exists() or token.read_text() != content:
        unseen = f"{host} does not see {token.parent} as the launcher does: give --logs on a shared file system"
        return News(job.id, "failed", unseen)

    def tell(news: News) -> None:
        board.tell.remote(News(news.job, news.state, f"{news.text} on {host}", news.resumed), node)

    with StopOnSignal() as stop:  # a cancelled task gets a SIGINT from Ray
        try:
            return execute(job, retries=retries, tell=tell, halt=lambda: int(stop.requested), tethered=True)
        except RunError as error:
            return News(job.id, "failed", str(error))


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


class OnRay:
    """The engine of a Ray cluster.

    Args:
        jobs: what to run.
        address: "auto" or host:port of a cluster that this machine belongs to, or "local" to start one here.
        retries: as for `execute`.
        logs: the folder that all run directories lie in.
    Raises:
        RunError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, jobs: Sequence[Job], address: str, retries: int, logs: Path):
        try:
            import ray
        except ImportError as error:
            raise RunError("--engine ray needs Ray: pip install -e '.[ray]'") from error
        if "://" in address:
            raise RunError(f"--address {address}: start this on a machine of the cluster, with auto or host:port")
        self._ray = ray
        if ":" in address:
            _require_answer(address)
        local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from error
        self._token, content = logs / f".seen-by-every-node-{secrets.token_hex(4)}", secrets.token_hex(16)
        with failures_named("write a file", self._token):
            logs.mkdir(parents=True, exist_ok=True)
            self._token.write_text(content)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        task = ray.remote(bring_to_its_end)
        self._jobs = {
            task.options(name=job.id, num_cpus=job.threads, num_gpus=job.gpus or None, max_retries=_NODE_DEATHS).remote(
                job, retries, self._token, content, self._board
            ): job
            for job in jobs
        }
        self._nodes: dict[str, str] = {}  # of the jobs that run
        self._stopping = False

    def shortage(self, jobs: Sequence[Job]) -> str | None:
        """What the largest job needs and no node has now; an autoscaler may still bring it."""
        for job in jobs:
            needs = {"CPU": job.threads, "GPU": job.gpus}
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            if not any(all(node.get(kind, 0) >= amount for kind, amount in needs.items()) for node in nodes):
                return f"no node has {needs['CPU']} CPU and {needs['GPU']:g} GPU, as {job.id} needs: it waits for one"
        return None

    def news(self) -> list[News]:
        """What has happened since the last call; waits up to a fifth of a second for it.

        Raises:
            RunError: the cluster has ended.
        """
        ray = self._ray
        done, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0.2)
        found = []
        try:
            for news, node in ray.get(self._board.take.remote()):
                found.append(news)
                self._nodes[news.job] = node
        except ray.exceptions.RayError as error:  # the board stands on this very node
            raise RunError("the Ray cluster has ended; the same command goes on once there is one") from error
        found += self._lost() + [self._ended(reference) for reference in done]
        if not self._jobs:
            with contextlib.suppress(OSError):
                self._token.unlink()
        return found

    def _ended(self, reference: Any) -> News:
        job = self._jobs.pop(reference)
        self._nodes.pop(job.id, None)
        try:
            news: News = self._ray.get(reference)
            return news
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f"Ray: {lines[-1] if lines else type(error).__name__}"
            return News(job.id, "interrupted") if self._stopping else News(job.id, "failed", reason)

    def _lost(self) -> list[News]:
        """Jobs whose node is gone; Ray gives them to another."""
        gone = {node["NodeID"] for node in self._ray.nodes() if not node["Alive"]}
        lost = [job for job, node in self._nodes.items() if node in gone]
        for job in lost:
            del self._nodes[job]
        return [News(job, "waiting", "its node is lost") for job in lost]

    def stop(self) -> None:
        """Cancel all tasks: what waits is dropped, what runs writes a checkpoint."""
        self._stopping = True
        for reference in self._jobs:
            self._ray.cancel(reference)

    def kill(self) -> None:
        """Kill the workers of the tasks; their runs, tethered, still write a checkpoint."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)


def _require_answer(address: str) -> None:
    """Ray itself would look for a cluster for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> RunError:
    how = "start one with `ray start --head`, or give --address local"
    return RunError(f"no Ray cluster at --address {address} ({str(error).splitlines()[0]}); {how}")
