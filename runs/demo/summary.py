"""What the demo shows of two runs: a table, a sentence, a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runs.analysis.curves import Curve, windowed
from runs.demo.design import LIMIT, RETURN, Size, agents
from runs.figures import style

ENTROPY, ELR, DEAD = "losses/entropy", "elr/actor.hidden3", "plasticity/dead_fraction/actor.relu3"
LEARNED = LIMIT / 2
"""return from which a level counts as learned"""
WINDOWS = 15
"""of a level, over which returns are averaged; 4,000 steps, in which each environment ends an episode"""
LOWEST_ELR = 1e-6
"""of the picture: a policy that does not change any more has 0"""
EMPTY: Curve = np.empty(0, dtype=np.int64), np.empty(0)


@dataclass(frozen=True)
class Scores:
    """Mean returns of a run: over windows, so that many short episodes weigh no more than a few long ones."""

    later: float
    """over all levels after the first change"""
    ends: Sequence[float]
    """over the last fifth of each level"""

    @property
    def learned(self) -> list[bool]:
        """Whether the agent has learned each level by its end."""
        return [end >= LEARNED for end in self.ends]


def returns_over_windows(curves: Mapping[str, Curve], size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of all windows of steps, and the mean return of the episodes that ended in each; nan without one."""
    edges = np.linspace(0.0, size.total, size.levels * WINDOWS + 1)
    return edges[1:], windowed(curves[RETURN], edges)


def scores(curves: Mapping[str, Curve], size: Size) -> Scores:
    """What the table shows of a run."""
    levels = returns_over_windows(curves, size)[1].reshape(size.levels, WINDOWS)
    return Scores(_mean(levels[1:]), [_mean(level[-(WINDOWS // 5) :]) for level in levels])


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def table(measured: Mapping[str, Scores], names: Mapping[str, str]) -> str:
    """Each agent's mean return after the first change, and at the end of each level."""
    count = len(next(iter(measured.values())).ends)
    heads = ["mean return", f"levels 2-{count}", *(f"end of {k}" for k in range(1, count + 1))]
    rows = [[names[run], *map(shown, (one.later, *one.ends))] for run, one in measured.items()]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "   ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in (heads, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def shown(value: float) -> str:
    """A return as a whole number; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.0f}"


def sentence(plain: Scores, rewarmed: Scores) -> str:
    """What the numbers show, also if it is not what one expects."""
    changes, by_plain, by_rewarmed = len(plain.ends) - 1, sum(plain.learned[1:]), sum(rewarmed.learned[1:])
    if not plain.learned[0]:
        verdict = "plain PPO did not learn the first task either, so this seed does not show what the changes do to it"
    elif by_plain == 0 and by_rewarmed == changes:
        verdict = "after the changes plain PPO did not learn again, and the other agent did each time"
    elif by_plain < by_rewarmed:
        verdict = "after the changes the re-warmed agent learned more often"
    elif by_plain > by_rewarmed:
        verdict = "on this seed plain PPO did better"
    elif by_plain == changes:
        verdict = "on this seed plain PPO did not stop learning"
    else:
        verdict = "on this seed the two do not differ"
    return f"{_record('Plain PPO', plain)}; {_record('the projected, re-warmed agent', rewarmed)}: {verdict}."


def _record(name: str, agent: Scores) -> str:
    first, *later = agent.learned
    how_many = {0: "none", len(later): "all"}.get(sum(later), str(sum(later)))
    return (
        f"{name} {'learned' if first else 'did not learn'} the first level ({shown(agent.ends[0])} of {LIMIT}) and "
        f"learned {how_many} of the {len(later)} levels after a change (mean return {shown(agent.later)})"
    )


def draw(curves: Mapping[str, Mapping[str, Curve]], size: Size, seed: int, paths: Sequence[Path]) -> None:
    """Return, entropy, realised effective learning rate and dead units of both agents over the steps.

    Raises:
        RunError: matplotlib is missing, or a file cannot be written.
    """
    named = {run: f"{agent.name}: {agent.about}" for run, agent in agents(size).items()}
    looks = style.looks(named)
    panels = {
        RETURN: f"mean return of training episodes (at most {LIMIT})",
        ENTROPY: "entropy of the policy [nats]; at 0 it always takes the same action",
        ELR: "realised effective learning rate ||dW|| / ||W||, policy's last hidden layer",
        DEAD: "share of the units of that layer that are dead (on observations of the first task)",
    }
    figure, drawn = style.begin(len(panels), columns=1, width=9.0, height=1.65)
    drawn[0].get_gridspec().set_height_ratios([2.2, *[1.0] * (len(panels) - 1)])
    for axes, (tag, title) in zip(drawn, panels.items(), strict=True):
        for run, name in named.items():
            x, y = returns_over_windows(curves[run], size) if tag == RETURN else curves[run].get(tag, EMPTY)
            if len(x):
                style.draw_arm(axes, np.asarray(x, dtype=np.float64), y[None], looks[run], name)
        for change in size.changes:
            axes.axvline(change, color="0.35", linestyle="dashed", linewidth=1.0, zorder=0)
        style.steps_axis(axes)
        axes.set_xlim(right=size.total)
        axes.set_title(title, fontsize=11, loc="left")
        axes.tick_params(labelsize=10, labelbottom=axes is drawn[-1])
        axes.set_xlabel("")
    for level in range(size.levels):
        drawn[0].text((level + 0.5) * size.level, 1.08 * LIMIT, f"level {level + 1}", ha="center", fontsize=10)
    drawn[0].set_ylim(top=1.2 * LIMIT)
    for axes, bottom in zip(drawn, (0.0, 0.0, LOWEST_ELR, 0.0), strict=True):
        if bottom:
            axes.set_yscale("log")
        axes.set_ylim(bottom=bottom)
    drawn[-1].set_xlabel("agent steps (dashed: another constant is added to the observation)", fontsize=11)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", alignment="left", fontsize=11, title_fontsize=13, frameon=False,
        title=f"CartPole, whose observation changes: one run of each agent, seed {seed}",
    )  # fmt: skip
    style.save(figure, paths)
