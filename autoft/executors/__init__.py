"""Where trials run."""

from autoft.executors.local import Event, LocalExecutor

__all__ = ["Event", "LocalExecutor"]
