"""From recorded runs to numbers: curves, groups of runs over seeds, statistics and the tables made of them."""
