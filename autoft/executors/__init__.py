"""Where trials run."""

from autoft.executors.local import LocalExecutor
from autoft.executors.supervision import Event, Executor
from autoft.plans.plan import Plan
from autoft.rundir import RunDir

__all__ = ["Event", "Executor", "LocalExecutor", "executor_of"]


def executor_of(plan: Plan, run: RunDir, workers: int, patience: float) -> Executor:
    """Return the executor that a plan asks for.

    Args:
        plan: of the run.
        run: its folder.
        workers: how many there are to be.
        patience: seconds that a worker may take to be ready.
    """
    if plan.executor == "ray":
        from autoft.executors.ray import RayExecutor

        return RayExecutor(run, plan, workers, patience=patience)
    threads = plan.train_threads or plan.threads
    return LocalExecutor(run, workers, threads, mapped=plan.train_memory is not None, patience=patience)
