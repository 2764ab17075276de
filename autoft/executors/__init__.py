"""Where trials run."""

from autoft.executors.local import LocalExecutor
from autoft.executors.supervision import Event, Executor

__all__ = ["Event", "Executor", "LocalExecutor"]
