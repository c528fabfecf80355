"""Faster forms of things that the scripts could also do without: the same algorithm, fewer and larger operations.

`flat_adam`: Adam on one vector. `minatar_q`: the gradient of the MinAtar Q-network, written out in NumPy. `captured`: a
gradient whose kernels a GPU launches at once.
"""
