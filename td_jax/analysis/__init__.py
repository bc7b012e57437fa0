"""What is found out about a run beside its score."""
