"""One file per experiment; `runs/experiment.py` says what stands in them."""
