"""A process that trains along with a worker: it does what rank 0 does, up to the end of each training, and says nothing of it.

``python -m autoft.executors.follower RUN_FOLDER RANK STORE``
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from autoft.errors import out_of_memory
from autoft.evaluation import import_for_models_in_torch
from autoft.executors.worker import limit_gpu_memory
from autoft.plugins import described
from autoft.processes import release_memory, silence_libraries
from autoft.ranks import ProcessGroup
from autoft.rundir import RunDir, TrialConfig
from autoft.trial import Workplace, train_along
from autoft.watched import Channel, end_with, own_channels

__all__ = ["main"]

ENDING = 0.5
"""Seconds in which a worker that ended takes this process with it: what failed for want of the worker is not told."""


def main() -> int:
    """Train along until the worker ends."""
    _, out = own_channels()
    end_with(os.getppid())
    run, rank, store = RunDir(Path(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
    faulthandler.enable()
    silence_libraries()
    import_for_models_in_torch()
    channel = Channel(out)
    try:
        _follow(Workplace.open(run), rank, store)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin or a library raises, the worker decides
        time.sleep(ENDING)
        traceback.print_exception(error)
        channel.say("failed", reason=described(error), memory=out_of_memory(error))
        # The worker decides: its own training may fail alike, and then tells why better than this.
        threading.Event().wait()
    return 0


def _follow(place: Workplace, rank: int, store: Path) -> None:
    import torch

    plan = place.plan
    torch.set_num_threads(plan.threads)
    if plan.device == "cuda":
        torch.cuda.set_device(rank)
        limit_gpu_memory(plan.train_memory)
    group = ProcessGroup(store, rank, plan.processes, plan.sharding, plan.device)
    while True:
        request: dict[str, Any] = group.ask({})
        # It validates what the worker does: of sharded weights all take part in each pass.
        place.plan = request["plan"]
        place.hear(request)
        train_along(place, TrialConfig.model_validate(request["config"]), group)
        release_memory()


if __name__ == "__main__":
    sys.exit(main())
