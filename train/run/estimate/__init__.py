"""Estimates of a run before it starts: sizes of the model, memory, and time per step."""
