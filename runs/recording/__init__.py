"""What a training run records: configuration, provenance, scalars, checkpoints; and how it is stopped.

Tools that only read runs import this, too. So torch, which takes seconds to import, is imported in the functions that
need it, and `runs.recording.video`, which needs gymnasium, is imported by the scripts that record videos.
"""

from runs.recording.checkpoint import load_checkpoint, save_checkpoint
from runs.recording.commandline import Preset, parse, presets
from runs.recording.config import config_from_dict, config_to_dict
from runs.recording.directory import Run, read_json, read_status
from runs.recording.errors import RunError
from runs.recording.finite import NonFiniteError, describe_nonfinite, weights_and_gradients
from runs.recording.flag_errors import one_line_errors, reject_unused
from runs.recording.interrupt import StopOnSignal, exit_with_one_line
from runs.recording.layout import layout
from runs.recording.pieces import Pieces
from runs.recording.rng import restore_rng, rng_state
from runs.recording.scalars_file import read_scalars, require_whole
from runs.recording.serialise import from_plain, to_plain
from runs.recording.tags import TAGS, Tag, check_tag

__all__ = [
    "TAGS",
    "NonFiniteError",
    "Pieces",
    "Preset",
    "Run",
    "RunError",
    "StopOnSignal",
    "Tag",
    "check_tag",
    "config_from_dict",
    "config_to_dict",
    "describe_nonfinite",
    "exit_with_one_line",
    "from_plain",
    "layout",
    "load_checkpoint",
    "one_line_errors",
    "parse",
    "presets",
    "read_json",
    "read_scalars",
    "read_status",
    "reject_unused",
    "require_whole",
    "restore_rng",
    "rng_state",
    "save_checkpoint",
    "to_plain",
    "weights_and_gradients",
]
