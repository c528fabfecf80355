"""Replay memories: what an agent saw, did and received, kept for sampling.

`TransitionMemory` keeps whole transitions, sampled uniformly; for small observations (MinAtar).
`FrameMemory` keeps each frame of a screen once and puts the stacks of four together again (Atari);
`Where` says where its frames are: on the host or on the device.
`Priorities` and `SumTree` choose slots of a memory in proportion to a power of their last TD error.
"""

from envs.replay.frames import FrameMemory
from envs.replay.priorities import Priorities, SumTree
from envs.replay.screens import Where
from envs.replay.transitions import TransitionMemory

__all__ = ["FrameMemory", "Priorities", "SumTree", "TransitionMemory", "Where"]
