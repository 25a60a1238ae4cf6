"""The result of a run in the form that other programs load."""
