"""Fig. 6, right: at one update per step, DQN's rate cycles."""

from __future__ import annotations

from runs.experiments.shared.atari import MEASURES, ahead, arms, high_utd_scales, rule
from runs.sweeps.experiment import Experiment

ARMS = ("baseline", "low", "cyclic")
PAIRS = (("cyclic", "baseline"), ("cyclic", "low"))
SHORT = {"cyclic": {"schedule.period_steps": 100}}  # scale smoke

EXPERIMENT = Experiment(
    name="fig6-right",
    source="Fig. 6 (right) of Lyle et al. 2025",
    claim="DQN with one update per step does better when its rate cycles than at a constant rate, high or low.",
    rule=rule(PAIRS),
    arms=arms("dqn_atari", "quick-high-utd", *ARMS),
    scales=high_utd_scales("dqn_atari", ARMS, SHORT),
    measures=MEASURES,
    judge=ahead(PAIRS),
    judged=("paper",),
    curve="charts/episodic_return",
)
