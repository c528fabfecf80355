"""Faster forms of things that the scripts could also do without: the same algorithm, fewer and larger operations.

`flat_adam`: Adam on one vector. `minatar_layers`, `minatar_q`: the gradient of the MinAtar Q-network, written out in
NumPy. `minatar_kernels`: its layers compiled by numba, also for PPO's gradient and acting, `minatar_ppo`. `proof`: what
is written out is compared with a script's own before it is used. `captured`: a gradient whose kernels a GPU launches at
once.
"""
