"""Speed, measured on the reader's own machine: the agents against CleanRL or a plain loop, in interleaved pairs."""
