"""Sweeps over settings: which are tried, how many at a time, which are stopped early, and what is shown of it."""
