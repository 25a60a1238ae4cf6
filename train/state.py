"""Former place of `uhr.train.run.state`, kept for scripts written against version 0.1."""

from uhr.train.run.state import TrainState

__all__ = ["TrainState"]
