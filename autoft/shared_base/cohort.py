"""Threads that train at the same time, one of which runs at a time, and the calls and losses that they wait for."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from autoft.errors import out_of_memory
from autoft.shared_base.base import Base
from autoft.shared_base.calls import ALONE, Call
from autoft.shared_base.models import Unfit

if TYPE_CHECKING:
    import torch

__all__ = ["Cohort", "Counts", "Seat"]

T = TypeVar("T")


class _Abandoned(BaseException):
    """The cohort ended while a trial waited: no error of the trial's, so that no trial writes it down as one."""


@dataclass
class Counts:
    """What joined passes did.

    Attributes:
        passes: joined forward passes through the body.
        calls: calls of trials that they answered.
        alone: calls that were answered by the trial's own body.
        tokens: rows times tokens of the calls as the trials made them.
        computed: of the joined passes, padding to the longest call included.
    """

    passes: int = 0
    calls: int = 0
    alone: int = 0
    tokens: int = 0
    computed: int = 0


class Cohort(Generic[T]):
    """Trials that train at the same time over one base.

    Args:
        seed: of what chance decides in joined passes: dropout inside of the body.
        floor: tokens below which a pass lasts no less than with so many, as :data:`FLOOR` has it; None for its figure.
    """

    def __init__(self, seed: int = 0, floor: int | None = None) -> None:
        self.seed, self.floor = seed, floor
        self.counts = Counts()
        self.base: Base | None = None
        self.seats: list[Seat] = []
        self.back = threading.Semaphore(0)
        self.abandoned = False
        self.failed: tuple[list[Seat], str] | None = None
        """Whose joined pass raised what, until it is known whether it was the fault of one."""
        self.own: _Chance | None = None
        """Chance of joined passes."""

    def run(self, works: Sequence[Callable[[Seat], T]]) -> list[T | Exception]:
        """Do all of the works, each in a thread of its own that runs while no other does.

        Args:
            works: each is given its :class:`Seat`, and trains inside of :meth:`Seat.sharing`.

        Returns:
            what each returned, or the exception that it raised, in their order.
        """
        self.seats = [Seat(self, number) for number in range(len(works))]
        results: list[Any] = [None] * len(works)
        before = _Chance.now()

        def begin(seat: Seat, work: Callable[[Seat], T]) -> None:
            seat.go.acquire()
            try:
                if not self.abandoned:
                    results[seat.number] = work(seat)
            except _Abandoned:
                pass
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is the caller's, and no other trial's
                results[seat.number] = error
            finally:
                seat.done = True
                self.back.release()

        threads = [
            threading.Thread(target=begin, args=pair, name=f"trial-{pair[0].number}", daemon=True)
            for pair in zip(self.seats, works, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            self._take_turns(before)
        finally:
            self.abandoned = True
            for seat, thread in zip(self.seats, threads, strict=True):
                # Those that are done have released it for nobody.
                seat.go.release()
                thread.join()
            before.restore()
            self.base = None
        return results

    def _take_turns(self, before: _Chance) -> None:
        chances = {seat.number: before for seat in self.seats}
        live = list(self.seats)
        while live:
            for seat in list(live):
                if seat.asked is None:
                    chances[seat.number].restore()
                    seat.go.release()
                    self.back.acquire()
                    chances[seat.number] = _Chance.now()
                    if seat.done:
                        live.remove(seat)
            waiting = [seat for seat in live if seat.asked is not None]
            calls = [seat for seat in waiting if isinstance(seat.asked, Call)]
            if calls:
                # Before any loss goes backwards: a pass that several share is freed by the first that does.
                first = calls[0].asked
                assert isinstance(first, Call)
                self._answer([s for s in calls if isinstance(s.asked, Call) and s.asked.kind == first.kind])
            elif waiting:
                self._backward(waiting)

    def _answer(self, seats: Sequence[Seat]) -> None:
        """Answer calls of one kind, those together whose padding costs less than a further pass."""
        assert self.base is not None
        calls = {seat.number: seat.asked for seat in seats}
        self._chance()
        for part in self.base.parts(seats, self.floor):
            self._answer_part(part, [calls[seat.number] for seat in part])
        self._keep_chance()

    def _answer_part(self, seats: Sequence[Seat], calls: Sequence[Any]) -> None:
        base = self.base
        assert base is not None
        answers: Sequence[Any]
        if len(seats) == 1:
            answers = [ALONE]
        else:
            try:
                answers = base.compute(seats, calls)
            except Unfit as reason:
                for seat in seats:
                    seat.why_alone = str(reason)
                answers = [ALONE] * len(seats)
            except Exception as error:  # noqa: BLE001 - see below
                if out_of_memory(error):
                    # Each takes its batch in more parts then.
                    error.__traceback__ = None
                    answers = [_Failed(error)] * len(seats)
                else:
                    # What one trial's rows bring about must not end the others: each computes its own, and the one
                    # whose fault it is meets it there. Where it is nobody's, they stay by themselves.
                    self.failed = list(seats), f"{type(error).__name__}: {error}"
                    answers = [ALONE] * len(seats)
        if calls[0].site == "body" and answers[0] is not ALONE and not isinstance(answers[0], _Failed):
            self.counts.passes += 1
            base.pending |= {seat.number for seat in seats}
        for seat, call, answer in zip(seats, calls, answers, strict=True):
            if call.site == "body":
                self.counts.alone += answer is ALONE
                self.counts.calls += answer is not ALONE
            seat.asked, seat.answer = None, answer

    def _backward(self, seats: Sequence[Seat]) -> None:
        """Add up the gradients of the losses that wait, in one pass."""
        import torch

        if self.failed is not None:
            tried, why = self.failed
            self.failed = None
            for seat in tried:
                if not any(one.done for one in tried):
                    seat.why_alone = why
        losses: list[Any] = [seat.asked for seat in seats]
        answer: Any = None
        if self.base is not None:
            self.base.pending -= {seat.number for seat in seats}
        try:
            torch.autograd.backward(losses)
            if self.base is not None:
                self.base.hand_out(seats)
        except Exception as error:  # noqa: BLE001 - it is raised again in each trial whose loss was among these
            error.__traceback__ = None
            answer = _Failed(error)
            if self.base is not None:
                self.base.forget_gradients()
        for seat in seats:
            seat.asked, seat.answer = None, answer

    def _chance(self) -> None:
        if self.own is None:
            import torch

            torch.manual_seed(self.seed)
        else:
            self.own.restore()

    def _keep_chance(self) -> None:
        self.own = _Chance.now()


class Seat:
    """A trial's place in a cohort.

    Attributes:
        shares: its body is computed with the others'.
        why_alone: why it is not, in words; empty where it is, and before it trains.
    """

    def __init__(self, cohort: Cohort[Any], number: int) -> None:
        self.cohort, self.number = cohort, number
        self.go = threading.Semaphore(0)
        self.asked: Any = None
        """A :class:`Call` or a loss that waits; None while the trial is its own master."""
        self.answer: Any = None
        self.done = False
        self.shares = False
        self.why_alone = ""
        self.checked = False
        """What a joined pass says of its rows was compared with what its own body says."""

    @contextmanager
    def sharing(self, model: torch.nn.Module) -> Iterator[Callable[[torch.Tensor], None] | None]:
        """Have a model compute with the others' while the context lasts; give what takes the place of ``loss.backward()``.

        The frozen weights are the cohort's meanwhile, and the model has its own again at the end. A model that does not fit
        the others (other frozen weights, another adapter than LoRA) is left as it is, and None is given.

        Args:
            model: as the adapter returned it, on its device; its optimiser is made inside of the context.
        """
        cohort = self.cohort
        self.shares, self.checked = True, False
        try:
            if cohort.base is None:
                cohort.base = Base(model)
            cohort.base.join(self, model)
        except Unfit as reason:
            self.shares, self.why_alone = False, str(reason)
        base = cohort.base
        if base is not None and not base.members:
            cohort.base = None
        if base is None or not self.shares:
            yield None
            return
        try:
            yield self._backward
        finally:
            self.shares = False
            base.leave(self)
            if not base.members:
                cohort.base = None

    def _backward(self, loss: torch.Tensor) -> None:
        if not loss.requires_grad:
            # torch says what is wrong.
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.ask(loss)

    def ask(self, what: Any) -> Any:
        """Wait for the cohort's answer; the other trials run meanwhile.

        Raises:
            Exception: that of the pass that computed the answer.
        """
        if self.cohort.abandoned:
            raise _Abandoned
        self.asked = what
        self.cohort.back.release()
        self.go.acquire()
        if self.cohort.abandoned:
            raise _Abandoned
        answer, self.answer = self.answer, None
        if isinstance(answer, _Failed):
            raise answer.error
        return answer


@dataclass(frozen=True)
class _Failed:
    error: Exception


class _Chance:
    """The state of a process that each trial has its own of: random numbers, and what Accelerate notes globally."""

    def __init__(self, states: Mapping[str, Any]) -> None:
        self.states = states

    @classmethod
    def now(cls) -> _Chance:
        """Return the state as it is."""
        import torch
        from accelerate.state import AcceleratorState, GradientState

        states: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "accelerate": [dict(state._shared_state) for state in (AcceleratorState, GradientState)],
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types here
            states["cuda"] = torch.cuda.get_rng_state()
        return cls(states)

    def restore(self) -> None:
        """Have the process go on from here."""
        import torch
        from accelerate.state import AcceleratorState, GradientState

        torch.set_rng_state(self.states["torch"])
        random.setstate(self.states["python"])
        np.random.set_state(self.states["numpy"])
        for state, kept in zip((AcceleratorState, GradientState), self.states["accelerate"], strict=True):
            state._shared_state.clear()
            state._shared_state.update(kept)
        if "cuda" in self.states:
            torch.cuda.set_rng_state(self.states["cuda"])
