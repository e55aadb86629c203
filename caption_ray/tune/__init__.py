"""Sweeps over settings: which are tried, how they are packed and stopped early, what is shown, and the best one's bundle."""
