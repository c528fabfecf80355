"""What a training script uses while it runs: its session, its latest returns, and checks of its own flags.

The script owns the loop; nothing here calls it back. This package knows neither `elr` nor `envs`.
"""

from runs.training.checks import (
    require,
    require_device,
    require_multiples,
    require_not_negative,
    require_positive,
    require_share,
    require_threads,
)
from runs.training.freed_memory import keep_freed_memory
from runs.training.picture import draw_comparison
from runs.training.precision import in_float32
from runs.training.recorded_elr import recorded_elr
from runs.training.returns import Returns
from runs.training.run_flags import RunArgs
from runs.training.session import Session

__all__ = [
    "Returns",
    "RunArgs",
    "Session",
    "draw_comparison",
    "in_float32",
    "keep_freed_memory",
    "recorded_elr",
    "require",
    "require_device",
    "require_multiples",
    "require_not_negative",
    "require_positive",
    "require_share",
    "require_threads",
]
