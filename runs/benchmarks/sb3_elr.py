"""The ELR of Stable-Baselines3's PPO and DQN on CartPole, with projection and without: constant, and on a schedule.

    python -m runs bench sb3-elr --jobs 2 --numbers sb3_elr.json --out docs/attach_sb3.png

The rate is constant, or a schedule that is re-warmed after half of the updates. Both arms train the same network, two
hidden layers with LayerNorm (PPO: two for the policy and two for the value), by `model.learn` with the callback of
`elr.integrations.sb3`. Needs `pip install -e ".[integrations]"`, and the extra `plots` for the picture.
With --numbers the runs that the file holds already are not repeated.

What is measured, per layer, every --every updates, with eta the rate, n the entries of W and dW the optimiser's step:

    nominal   eta / ||W||             what projection holds
    realised  ||dW|| / ||W||  = (nominal) * sqrt(n) * u
    step      u = ||dW|| / (eta sqrt(n)), the size of the optimiser's step per entry and unit of the rate

Projection controls the norm, and with it the nominal ELR. u belongs to the optimiser: Adam's grows when gradients agree
from update to update. `sign` (Adam without averages) and `normalised` (gradients scaled to one norm per layer) take
steps of one size, so there the realised ELR is constant too.

Printed per arm: `deviation`, the largest relative change of nominal / eta since the first update; `drift` of
realised / eta and of u, the mean over the last quarter of the updates relative to the first. Median over layers and
seeds, with the largest in brackets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from elr.measure import Meter
from elr.projection import NoProjection
from elr.schedules import Constant, WarmupCosine
from elr.triggers import Every
from runs.figures import style
from runs.recording import one_line_errors

Algorithm = Literal["ppo", "dqn"]
Optimiser = Literal["adam", "rms", "sign", "normalised"]
Rates = Literal["constant", "schedule"]
RATES: tuple[Rates, ...] = ("constant", "schedule")
RATE = {"ppo": 3e-4, "dqn": 1e-3}
WINDOWS = 100


@dataclass(frozen=True)
class Args:
    """What to run, and where to put it."""

    algorithms: tuple[Algorithm, ...] = ("ppo", "dqn")
    """of Stable-Baselines3"""
    also: tuple[Optimiser, ...] = ("sign",)
    """other optimisers than Adam; rms: Adam with beta1 = 0; sign and normalised: see above"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """one run each per arm"""
    ppo_steps: int = 100_000
    """environment steps of PPO"""
    dqn_steps: int = 30_000
    """environment steps of DQN"""
    every: int = 5
    """updates between measurements"""
    jobs: int = 1
    """processes, one thread each"""
    numbers: Path | None = None
    """JSON file of the runs, read and extended"""
    out: Path | None = None
    """picture: a row per optimiser and rate, a column per algorithm and kind of ELR"""

    def __post_init__(self) -> None:
        for name in ("ppo_steps", "dqn_steps", "every", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Job:
    """One run."""

    algorithm: Algorithm
    optimiser: Optimiser
    rates: Rates
    projected: bool
    seed: int
    steps: int
    every: int

    @property
    def name(self) -> str:
        """Key in the file of numbers."""
        arm = "projected" if self.projected else "free"
        return f"{self.algorithm} {self.optimiser} {self.rates} {arm} seed {self.seed}, {self.steps} steps"


class Normalised(torch.optim.Optimizer):
    """W <- W - eta sqrt(n) g / ||g||: every step of a tensor of n entries has the norm eta sqrt(n)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take the step; a gradient of zero moves nothing."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and (norm := float(weight.grad.norm())) > 0.0:
                    weight.sub_(weight.grad, alpha=group["lr"] * math.sqrt(weight.numel()) / norm)


OPTIMISERS: dict[Optimiser, dict[str, Any]] = {
    "adam": {},
    "rms": {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"betas": (0.0, 0.999), "eps": 1e-8}},
    "sign": {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"betas": (0.0, 0.0), "eps": 1e-30}},
    "normalised": {"optimizer_class": Normalised},
}


TITLES = {"adam": "Adam", "rms": "Adam, beta1 = 0", "sign": "sign", "normalised": "normalised"}


def train(job: Job) -> dict[str, Any]:
    """Make one run; its measurements, averaged in windows of equal numbers of updates."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.env_util import make_vec_env

    from elr.integrations.sb3 import LayerNormMlp, RewarmCallback, policy_projection

    torch.set_num_threads(1)
    policy: dict[str, Any] = {"net_arch": [], "features_extractor_class": LayerNormMlp, **OPTIMISERS[job.optimiser]}
    model: Any
    if job.algorithm == "ppo":
        policy["share_features_extractor"] = False
        model = PPO(
            "MlpPolicy", make_vec_env("CartPole-v1", 4), seed=job.seed, device="cpu", policy_kwargs=policy,
            n_steps=512, batch_size=128,
        )  # fmt: skip
        updates = math.ceil(job.steps / 2_048) * 16 * model.n_epochs
    else:
        model = DQN(
            "MlpPolicy", "CartPole-v1", seed=job.seed, device="cpu", policy_kwargs=policy, buffer_size=50_000,
            learning_starts=1_000, target_update_interval=500, exploration_fraction=0.2,
        )  # fmt: skip
        updates = (job.steps - 1_000) // 4
    peak, half = RATE[job.algorithm], updates // 2
    cosine = WarmupCosine(peak=peak, warmup_steps=half // 20, decay_steps=half, final=peak / 20, initial=peak / 20)
    projection = policy_projection(model)
    weights = projection.weights
    callback = RewarmCallback(
        schedule=Constant(peak) if job.rates == "constant" else cosine,
        trigger=None if job.rates == "constant" else Every(half),
        projection=projection if job.projected else NoProjection(),
        meter=Meter(weights, every=job.every, optimizer=model.policy.optimizer, nominal_power=1),
    )
    measured: list[dict[str, float]] = []
    model.learn(job.steps, callback=[callback, _recorder(callback, measured)])
    eta = np.array([scalars["charts/learning_rate"] for scalars in measured])
    layers = {}
    for layer, weight in weights.items():
        step = np.array([scalars[f"norms/update/{layer}"] for scalars in measured])
        norm = np.array([scalars[f"norms/parameter/{layer}"] for scalars in measured])
        nominal = norm[0] / norm  # relative to the first, and per unit of the rate
        size = step / (eta * math.sqrt(weight.numel()))
        layers[layer] = {
            "deviation": float(np.abs(nominal - 1.0).max()),
            "drift": _drift(nominal * size),
            "drift of u": _drift(size),
            "nominal": _windows(eta * nominal),
            "realised": _windows(eta * nominal * size),
        }
    returns = [episode["r"] for episode in model.ep_info_buffer]
    return {"layers": layers, "rate": _windows(eta), "updates": callback.handle.updates, "return": np.mean(returns)}


def _recorder(callback: Any, measured: list[dict[str, float]]) -> Any:
    """A callback that keeps what was measured; behind the other one, so that its hook runs after that one's."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Recorder(BaseCallback):
        def _on_training_start(self) -> None:
            self.model.policy.optimizer.register_step_post_hook(self._keep)

        def _keep(self, *_: object) -> None:
            scalars = callback.handle.scalars()
            if any(tag.startswith("elr/") for tag in scalars):
                measured.append(scalars)

        def _on_step(self) -> bool:
            return True

    return Recorder()


def _windows(values: Any) -> list[float]:
    edges = np.linspace(0, len(values), WINDOWS + 1).astype(int)
    return [float(f"{values[start:end].mean():.6g}") for start, end in pairwise(edges)]


def _drift(values: Any) -> float:
    quarter = len(values) // 4
    return float(values[-quarter:].mean() / values[:quarter].mean() - 1.0)


def jobs(args: Args) -> list[Job]:
    """Every run of the command."""
    steps = {"ppo": args.ppo_steps, "dqn": args.dqn_steps}
    arms = product(args.seeds, args.algorithms, ("adam", *args.also), RATES, (True, False))
    return [
        Job(algorithm, optimiser, rates, projected, seed, steps[algorithm], args.every)
        for seed, algorithm, optimiser, rates, projected in arms
    ]


def table(args: Args, results: dict[str, Any]) -> str:
    """One line of Markdown per arm."""
    lines = [
        "| algorithm | optimiser | rate | projection | nominal: deviation | realised: drift | u: drift | return | n |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm in dict.fromkeys(_arm(job) for job in jobs(args)):
        runs = [results[job.name] for job in jobs(args) if _arm(job) == arm]
        layers = [layer for run in runs for layer in run["layers"].values()]
        cells = [_median([layer[key] for layer in layers]) for key in ("deviation", "drift", "drift of u")]
        returns = f"{np.mean([run['return'] for run in runs]):.0f}"
        lines.append(f"| {' | '.join([*arm, *cells, returns, str(len(runs))])} |")
    return "\n".join(lines)


def _arm(job: Job) -> tuple[str, str, str, str]:
    return job.algorithm, job.optimiser, job.rates, "on" if job.projected else "off"


def _median(values: Sequence[float]) -> str:
    largest = max(values, key=abs)
    return f"{_percent(float(np.median(values)))} ({_percent(largest)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if abs(share) < 0.001 else f"{100 * share:.1f} %"


def draw(args: Args, results: dict[str, Any], path: Path) -> None:
    """Rows: optimisers and rates. Columns: nominal and realised ELR of each algorithm, times the initial norm.

    At a constant rate they are divided by it, so the nominal one begins at 1.
    """
    rows = list(product(("adam", *args.also), RATES))
    columns = [(algorithm, kind) for algorithm in args.algorithms for kind in ("nominal", "realised")]
    figure, panels = style.begin(len(rows) * len(columns), columns=len(columns), width=3.4, height=2.4)
    for axes, ((optimiser, rates), (algorithm, kind)) in zip(panels, product(rows, columns), strict=True):
        chosen = [
            job for job in jobs(args) if (job.algorithm, job.optimiser, job.rates) == (algorithm, optimiser, rates)
        ]
        for projected, colour in ((False, style.COLOURS[1]), (True, style.COLOURS[0])):
            arm = [results[job.name] for job in chosen if job.projected == projected]
            unit = RATE[algorithm] if rates == "constant" else 1.0
            noisy = kind == "realised" and optimiser in ("adam", "rms")
            points = WINDOWS // 5 if noisy else WINDOWS
            x = (np.arange(points) + 0.5) / points * arm[0]["updates"]
            for index, layer in enumerate(arm[0]["layers"]):
                curves = np.array([run["layers"][layer][kind] for run in arm]) / unit
                curves = curves.reshape(len(arm), points, -1).mean(axis=2)
                look = style.Look(colour, style.DASHES[index])
                label = f"{'projected' if projected else 'not projected'}, layer {index + 1} (n = {len(arm)})"
                style.draw_arm(axes, x, curves, look, label)
        if rates == "schedule":
            rate = np.array(arm[0]["rate"]).reshape(points, -1).mean(axis=1)
            axes.plot(x, rate, color="black", linewidth=0.8, label="learning rate", zorder=4)
        if rates == "schedule" or noisy:
            axes.set_yscale("log")
        axes.set_title(f"{algorithm.upper()}, {TITLES[optimiser]}, {rates}: {kind}", fontsize=8)
        axes.set_xlabel("updates", fontsize=8)
        if axes in panels[:: len(columns)]:
            axes.set_ylabel("ELR x initial norm / rate" if rates == "constant" else "ELR x initial norm", fontsize=8)
    style.legend_below(figure, panels)
    style.save(figure, [path])


def _made(missing: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The runs, in the order in which they end."""
    if processes == 1:
        yield from ((job, train(job)) for job in missing)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(train, job): job for job in missing}
        yield from ((running[done], done.result()) for done in as_completed(running))


def main(args: Args) -> None:
    """Make the runs that are missing, print the table, draw the picture."""
    with one_line_errors("bench sb3-elr needs Stable-Baselines3", also=(ImportError,)):
        import stable_baselines3  # noqa: F401
    results: dict[str, Any] = {}
    if args.numbers is not None and args.numbers.exists():
        results = json.loads(args.numbers.read_text())
    missing = [job for job in jobs(args) if job.name not in results]
    for job, result in _made(missing, args.jobs):
        results[job.name] = result
        print(f"{job.name}: return {result['return']:.0f}", flush=True)
        if args.numbers is not None:
            args.numbers.write_text(json.dumps(results))
    print(table(args, results))
    if args.out is not None:
        draw(args, results, args.out)
