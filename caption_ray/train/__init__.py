"""Training: plain PyTorch steps, and the thin layer that runs them under Ray Train."""
