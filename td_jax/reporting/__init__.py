"""One page of a folder of runs: what is there, how the runs compare, and what they are made of."""
