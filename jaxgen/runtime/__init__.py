"""Runs any method: mesh, run folder, checkpoints, loop, progress. Knows no method by name."""
