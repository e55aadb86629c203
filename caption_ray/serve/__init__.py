"""Captions over HTTP: the app and what it speaks, and its deployment on Ray Serve."""
