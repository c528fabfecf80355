"""What every test shares: one thread, and hypothesis examples that are the same in every run."""

import torch
from hypothesis import settings

# The tensors here are tiny: a second thread costs more than it saves, and sums would depend on the core count.
torch.set_num_threads(1)

# derandomize: a red run must be red again on the next machine. No deadline: a busy machine is not a failure.
settings.register_profile("rewarm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("rewarm")
