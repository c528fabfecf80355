"""Records of runs, sweeps of many runs, and their analysis: `python -m runs --help`."""
