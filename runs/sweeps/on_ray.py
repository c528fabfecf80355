"""Run the jobs on a Ray cluster: each job is a Ray task, which starts the run's process on its node and waits for it.

    ray start --head --port=6379                      on one machine, then
    ray start --address=HEAD:6379                     on every other machine (see Ray's documentation)
    python -m runs run fig3 --scale paper --engine ray --address auto

Ray manages the queue, the cores and the shares of GPUs, and moves the task of a node that died to another node. The
task reads the state of the run from its directory, which must be on a file system that every node shares. Each task
checks this by reading a file that the launcher has written. If a worker is killed, its run gets SIGTERM, writes a
checkpoint and stops; the task's next attempt waits for that.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs.recording import RunError, StopOnSignal
from runs.recording.files import failures_named
from runs.sweeps.experiment import Job
from runs.sweeps.run_job import News, run_job

_NODE_DEATHS = 10  # attempts that a job may lose with its nodes; crashes of its own process are limited by --retries


class NewsBoard:
    """An actor on the launcher's node that collects the news of all tasks, with the id of their node."""

    def __init__(self) -> None:
        self._news: list[tuple[News, str]] = []

    def tell(self, news: News, node: str) -> None:
        """Add news."""
        self._news.append((news, node))

    def take(self) -> list[tuple[News, str]]:
        """The news since the last call."""
        news, self._news = self._news, []
        return news


def run_on_node(job: Job, retries: int, token: Path, content: str, board: Any, parent: News | None = None) -> News:
    """The Ray task: run a job on this node.

    Args:
        job: what to run.
        retries: as for `run_job`.
        token: a file that the launcher wrote next to the run directories.
        content: its content; another one means that this node sees another file system.
        board: the actor that collects news.
        parent: how the run ended that this one branches from; Ray starts the task when it is known.
    """
    if parent is not None and parent.state != "finished":
        why = f"it branches from {parent.job}, which {'failed' if parent.state == 'failed' else 'was interrupted'}"
        return News(job.id, parent.state, why)
    host, node = platform.node(), _node_id()
    if not token.exists() or token.read_text(encoding="utf-8") != content:
        unseen = f"{host} does not share {token.parent} with the launcher: give --logs on a shared file system"
        return News(job.id, "failed", unseen)

    def tell(news: News) -> None:
        board.tell.remote(News(news.job, news.state, f"{news.text} on {host}", news.resumed), node)

    with StopOnSignal() as stop:  # a cancelled task gets a SIGINT from Ray
        try:
            return run_job(job, retries=retries, tell=tell, halt=lambda: int(stop.requested), die_with_parent=True)
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
        retries: as for `run_job`.
        logs: folder of all run directories.
    Raises:
        RunError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, jobs: Sequence[Job], address: str, retries: int, logs: Path):
        try:
            import ray
        except ImportError as error:
            raise RunError("--engine ray needs Ray: pip install -e '.[ray]'") from error
        if "://" in address:
            raise RunError(
                f"--address must be auto, local or host:port, got {address}; start this on a machine of the cluster"
            )
        self._ray = ray
        if ":" in address:
            _require_answer(address)
        local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from error
        self._token, content = logs / f".shared-with-every-node-{secrets.token_hex(4)}", secrets.token_hex(16)
        with failures_named("write a file", self._token):
            logs.mkdir(parents=True, exist_ok=True)
            self._token.write_text(content, encoding="utf-8")
        this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._board = ray.remote(NewsBoard).options(num_cpus=0, scheduling_strategy=this_node).remote()
        task = ray.remote(run_on_node)
        references: dict[str, Any] = {}
        for job in jobs:  # a run comes before those that branch from it
            needs = {"num_cpus": job.threads, "num_gpus": job.gpus or None, "max_retries": _NODE_DEATHS}
            parent = references.get(job.parent.id) if job.parent else None
            words = (job, retries, self._token, content, self._board, parent)
            references[job.id] = task.options(name=job.id, **needs).remote(*words)
        self._jobs = {references[job.id]: job for job in jobs}
        self._nodes: dict[str, str] = {}  # of running jobs
        self._stopping = False

    def shortage(self, jobs: Sequence[Job]) -> str | None:
        """What a job needs and no node has at present; an autoscaler may still provide it."""
        for job in jobs:
            needs = {"CPU": job.threads, "GPU": job.gpus}
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            if not any(all(node.get(kind, 0) >= amount for kind, amount in needs.items()) for node in nodes):
                return f"no node has {needs['CPU']} CPU and {needs['GPU']:g} GPU, as {job.id} needs: waiting for one"
        return None

    def news(self) -> list[News]:
        """The news since the last call; waits up to a fifth of a second for some.

        Raises:
            RunError: the cluster has ended.
        """
        ray = self._ray
        done, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0.2)
        collected = []
        try:
            for news, node in ray.get(self._board.take.remote()):
                collected.append(news)
                self._nodes[news.job] = node
        except ray.exceptions.RayError as error:  # the board is on this very node
            raise RunError("the Ray cluster has ended; run the same command again once there is one") from error
        collected += self._lost() + [self._ended(reference) for reference in done]
        if not self._jobs:
            with contextlib.suppress(OSError):
                self._token.unlink()
        return collected

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
        """Jobs whose node is gone; Ray moves them to another."""
        gone = {node["NodeID"] for node in self._ray.nodes() if not node["Alive"]}
        lost = [job for job, node in self._nodes.items() if node in gone]
        for job in lost:
            del self._nodes[job]
        return [News(job, "waiting", "its node is lost") for job in lost]

    def stop(self) -> None:
        """Cancel all tasks: waiting ones are dropped, running ones write a checkpoint."""
        self._stopping = True
        for reference in self._jobs:
            self._ray.cancel(reference)

    def kill(self) -> None:
        """Kill the workers of the tasks; their runs get SIGTERM and still write a checkpoint."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)


def _require_answer(address: str) -> None:
    """Fail early: Ray itself would look for a cluster for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> RunError:
    how = "start one with `ray start --head`, or give --address local"
    return RunError(f"no Ray cluster at --address {address} ({str(error).splitlines()[0]}); {how}")
