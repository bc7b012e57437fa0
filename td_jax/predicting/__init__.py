"""Predictions of a trained student for ids and images."""
