"""Fig. 7, right: at one update per step, DQN's rate cycles and then stays low."""

from __future__ import annotations

from runs.experiments.shared.atari import MEASURES, ahead, arms, high_utd_scales, rule
from runs.sweeps.experiment import Experiment

ARMS = ("baseline", "cyclic", "cyclic-annealed")
PAIRS = (("cyclic-annealed", "baseline"), ("cyclic-annealed", "cyclic"))
SHORT = {"cyclic": {"schedule.period_steps": 100}, "cyclic-annealed": {"schedule.period_steps": 30}}  # scale smoke

EXPERIMENT = Experiment(
    name="fig7-right",
    source="Fig. 7 (right) of Lyle et al. 2025",
    claim="DQN with one update per step does better when its rate makes ten cycles of 4 million frames and then "
    "stays low than at a constant rate or when it cycles throughout, in cycles of 20 million frames.",
    rule=rule(PAIRS),
    arms=arms("dqn_atari", "quick-high-utd", *ARMS),
    scales=high_utd_scales("dqn_atari", ARMS, SHORT),
    measures=MEASURES,
    judge=ahead(PAIRS),
    judged=("paper",),
    curve="charts/episodic_return",
)
