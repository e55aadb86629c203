"""Scores of predicted captions, and the job that computes them over a cluster."""
