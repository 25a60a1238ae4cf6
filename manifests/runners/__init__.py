"""Where units run: in this process, in worker processes of our own, or on Ray."""

from uhr.manifests.runners.inline import InlineRunner
from uhr.manifests.runners.local import LocalRunner
from uhr.manifests.runners.ray import RayRunner

__all__ = ["InlineRunner", "LocalRunner", "RayRunner"]
