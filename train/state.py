"""The import path of `TrainState` in version 0.1, kept for scripts that use it."""

from uhr.train.run.checkpoints.state import TrainState

__all__ = ["TrainState"]
