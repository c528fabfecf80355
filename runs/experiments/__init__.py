"""One file per experiment; runs/sweeps/experiment.py says what they define."""
