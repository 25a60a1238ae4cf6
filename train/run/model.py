"""What the loop needs of the model that it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from uhr.models.surgery.base import record
from uhr.train.run.job import Job


class TrainedModel(ABC):
    """A job's model in memory, with its surgeries and its prepared trainable part.

    module: the component that is trained. network: it as a function, as objectives call it.
    """

    def __init__(self, job: Job, module: Any, network: Any) -> None:
        self.job, self.module, self.network = job, module, network
        self.surgeries = record(module)

    @abstractmethod
    def write_images(self, step: int) -> None:
        """Write the images of the recipe's `validation`, if it asks for any."""

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """Measure the held-out loss that the recipe's `validation` asks for, as values of the log."""
