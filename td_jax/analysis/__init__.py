"""Analyses of a run other than its score."""
