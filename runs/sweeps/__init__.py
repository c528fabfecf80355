"""Many runs: what an experiment plans, and how its jobs are run on this machine or on a Ray cluster."""
