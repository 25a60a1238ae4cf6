"""A training run: job, trainer, state, checkpoints, log, export."""
