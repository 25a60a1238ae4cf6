"""Where units run: in this process, in worker processes of our own, or on Ray."""

from uhr.runtime.inline import InlineRunner
from uhr.runtime.local import LocalRunner
from uhr.runtime.ray import RayRunner

__all__ = ["InlineRunner", "LocalRunner", "RayRunner"]
