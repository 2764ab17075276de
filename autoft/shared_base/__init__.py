"""Several LoRA trials over one frozen base at the same time: one forward pass and one backward pass a step for all of them.

Each trial trains as it does alone, in a thread of its own, with its own adapter, head, optimiser, schedule and batches.
One thread runs at a time, in a fixed order. Where a trial calls the body of its model in training it waits until all the
others have called theirs; the inputs are joined row by row, the frozen weights are read once, and each trial's low-rank
updates are added to its own rows. The losses then go backwards in one pass. Multi-adapter training of this kind is that
of mLoRA (Ye et al. 2023, arXiv:2312.02515); adapters of other ranks in one product are those of Punica and S-LoRA (Chen et
al. 2023, arXiv:2310.18547; Sheng et al. 2023, arXiv:2311.03285).

What a trial learns is what it would learn alone, but for the order of additions in floating point and, where there is
dropout inside of the body, for the numbers that chance gives.

Modules: :mod:`~autoft.shared_base.cohort` has the threads and their turns, :mod:`~autoft.shared_base.base` the body that
is shared, :mod:`~autoft.shared_base.layers` what stands in the place of its layers, :mod:`~autoft.shared_base.models` what
of a trial's model is frozen and what is trained, :mod:`~autoft.shared_base.calls` which calls are joined and how answers
are divided.
"""

from autoft.shared_base.calls import FLOOR
from autoft.shared_base.cohort import Cohort, Counts, Seat

__all__ = ["FLOOR", "Cohort", "Counts", "Seat"]
