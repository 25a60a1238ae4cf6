"""Evaluates the kept checkpoints of a training run, and draws their values against steps."""
