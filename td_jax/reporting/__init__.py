"""One page for a folder of runs: their states, comparisons, curves and options."""
