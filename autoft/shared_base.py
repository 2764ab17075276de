"""Several LoRA trials over one frozen base at the same time: one forward pass and one backward pass a step for all of them.

Each trial trains as it does alone, in a thread of its own, with its own adapter, head, optimiser, schedule and batches.
One thread runs at a time, in a fixed order. Where a trial calls the body of its model in training it waits until all the
others have called theirs; the inputs are joined row by row, the frozen weights are read once, and each trial's low-rank
updates are added to its own rows. The losses then go backwards in one pass. Multi-adapter training of this kind is that
of mLoRA (Ye et al. 2023, arXiv:2312.02515); adapters of other ranks in one product are those of Punica and S-LoRA (Chen et
al. 2023, arXiv:2310.18547; Sheng et al. 2023, arXiv:2311.03285).

What a trial learns is what it would learn alone, but for the order of additions in floating point and, where there is
dropout inside of the body, for the numbers that chance gives.
"""

from __future__ import annotations

import copy
import inspect
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from autoft.errors import out_of_memory
from autoft.pretrained import DROPOUTS
from autoft.strategies.head_only import find_bodies
from autoft.strategies.peft_adapter import ADAPTER

if TYPE_CHECKING:
    import torch

__all__ = ["FLOOR", "Cohort", "Counts", "Seat"]

T = TypeVar("T")

FLOOR: Mapping[str, int] = {"cpu": 64, "cuda": 4096}
"""By device, the tokens below which a pass is taken to last no less: calls whose padding costs more than that are not
joined. Both are guesses; ``benchmarks/shared_base.py --floor`` tries others."""

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""How far what a joined pass says of a trial's rows may be from what the trial's own body says, relative to the largest."""

ROWS = frozenset({"attention_mask", "input_ids", "inputs_embeds", "position_ids", "token_type_ids"})
"""Arguments of a body of shape ``(rows, tokens, ...)``."""

ATTENTION = "autoft_joined"
"""Name under which transformers knows attention whose dropout is each row's own."""

RATES = ("dropout", "attention_dropout", "attn_dropout", "dropout_prob", "dropout_p")
"""Attributes in which transformers' attention keeps the rate of its dropout."""


class _Unfit(Exception):
    """A model or a call that cannot be joined with the others; it runs by itself."""


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
        self.base: _Base | None = None
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
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's, and no other trial's
                results[seat.number] = error
            except _Abandoned:
                pass
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
            calls = [seat for seat in waiting if isinstance(seat.asked, _Call)]
            if calls:
                # Before any loss goes backwards: a pass that several share is freed by the first that does.
                first = calls[0].asked
                assert isinstance(first, _Call)
                self._answer([s for s in calls if isinstance(s.asked, _Call) and s.asked.kind == first.kind])
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
            answers = [_ALONE]
        else:
            try:
                answers = base.compute(seats, calls)
            except _Unfit as reason:
                for seat in seats:
                    seat.why_alone = str(reason)
                answers = [_ALONE] * len(seats)
            except Exception as error:  # noqa: BLE001 - see below
                if out_of_memory(error):
                    # Each takes its batch in more parts then.
                    error.__traceback__ = None
                    answers = [_Failed(error)] * len(seats)
                else:
                    # What one trial's rows bring about must not end the others: each computes its own, and the one
                    # whose fault it is meets it there. Where it is nobody's, they stay by themselves.
                    self.failed = list(seats), f"{type(error).__name__}: {error}"
                    answers = [_ALONE] * len(seats)
        if calls[0].site == "body" and answers[0] is not _ALONE and not isinstance(answers[0], _Failed):
            self.counts.passes += 1
            base.pending |= {seat.number for seat in seats}
        for seat, call, answer in zip(seats, calls, answers, strict=True):
            if call.site == "body":
                self.counts.alone += answer is _ALONE
                self.counts.calls += answer is not _ALONE
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
        """A :class:`_Call` or a loss that waits; None while the trial is its own master."""
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
                cohort.base = _Base(model)
            cohort.base.join(self, model)
        except _Unfit as reason:
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


_ALONE = object()
"""The answer to a call that the trial's own body has to compute."""


@dataclass(frozen=True)
class _Call:
    """What a trial gives to its body, or to its frozen output layer."""

    site: str
    kind: tuple[Any, ...]
    """Calls of one kind are computed together."""
    given: Mapping[str, Any]
    rows: int
    length: int


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


@dataclass
class _Member:
    """A trial's model while it shares the base."""

    seat: Seat
    model: Any
    body: Any
    adapted: dict[str, Any]
    """LoRA layers of the body, by name."""
    saved: dict[str, Any]
    """Other trained modules of the body, by name."""
    undo: list[Callable[[], None]] = field(default_factory=list)
    rows: int = 0
    """Of its first batch."""

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(int(layer.lora_A[ADAPTER].weight.shape[0]) for layer in self.adapted.values())


@dataclass(frozen=True)
class _Part:
    """A trial's rows in a joined pass."""

    member: _Member
    begin: int
    end: int


_passing: ContextVar[tuple[_Part, ...]] = ContextVar("passing")
"""The parts of the joined pass that is under way."""


class _Base:
    """The frozen body that trials share, and how their updates are added to it.

    Args:
        model: the first trial's, as its adapter returned it.

    Raises:
        _Unfit: it is no LoRA over one frozen body.
    """

    def __init__(self, model: Any) -> None:
        self.members: list[_Member] = []
        self.layers: dict[str, _Layer] = {}
        """By name, the linear layers of the body that a trial adapts."""
        self.weights: dict[str, tuple[Any, str]] = {}
        """By name, the frozen weights: the module that owns each, and as what."""
        self.body_name, body = _body(model)
        self.signature = inspect.signature(body.forward)
        self.stacked: tuple[tuple[int, int], ...] = ()
        """By seat and rows, whose matrices lie behind each other now."""
        self.pending: set[int] = set()
        """Seats that have a joined pass whose losses have not gone backwards."""
        self.settings = _settings(body)
        for name, owner, attribute, weight in _owned(model.get_base_model()):
            if not weight.requires_grad:
                self.weights[name] = owner, attribute
        self.body = self._copied(body)
        self.modules: dict[int, str] = {id(module): name for name, module in self.body.named_modules()}
        self.attending: set[str] = set()
        """Modules whose attention transformers computes by the function that it was given."""
        self.implementation = getattr(getattr(self.body, "config", None), "_attn_implementation", None)
        for name, module in self.body.named_modules():
            if type(module).__name__ == "Dropout":
                module.forward = _Dropout(self, name)
            elif any(buffer.is_floating_point() for buffer in module.buffers(recurse=False)) and hasattr(
                module, "running_mean"
            ):
                raise _Unfit(f"{name} counts over all rows of a batch")

    def _copied(self, body: Any) -> Any:
        """Return the body's modules over the same weights, without adapters."""
        from peft.tuners.lora import LoraLayer

        memo: dict[int, Any] = {id(one): one for one in (*body.parameters(), *body.buffers()) if not one.requires_grad}
        for _, module in body.named_modules():
            if _quantized(module):
                # What bitsandbytes keeps beside the weight belongs to both.
                memo[id(module)] = copy.copy(module)
        with _unwrapped(body):
            copied = copy.deepcopy(body, memo)
        for name, module in list(copied.named_modules()):
            if isinstance(module, LoraLayer):
                copied.set_submodule(name, module.base_layer)
        return copied.train()

    # -- who takes part -----------------------------------------------------------------------------------------

    def join(self, seat: Seat, model: Any) -> None:
        """Have a trial's model use these weights, and ask here where it would compute its body in training.

        Raises:
            _Unfit: its frozen weights or its settings are others, or it trains something that cannot be joined.
        """
        name, body = _body(model)
        if name != self.body_name or _settings(body) != self.settings:
            raise _Unfit("its model is another one")
        member = _Member(seat, model, body, *_trained(body))
        mine = {
            name: (owner, attribute, weight)
            for name, owner, attribute, weight in _owned(model.get_base_model())
            if not weight.requires_grad
        }
        self._compare(mine)
        for name in member.adapted:
            if name not in self.layers:
                self.layers[name] = _Layer(self, name, self.body.get_submodule(name))
        for name in member.saved:
            self.body.get_submodule(name).forward = _Saved(name)
        self._use(mine, member)
        self._meet(member)
        self.members.append(member)

    def _compare(self, mine: Mapping[str, tuple[Any, str, Any]]) -> None:
        import torch

        body = f"{self.body_name}."
        ours = {name for name in self.weights if name.startswith(body)}
        if {name for name in mine if name.startswith(body)} != ours:
            raise _Unfit("other weights are frozen")
        for name in ours:
            owner, attribute = self.weights[name]
            weight, other = getattr(owner, attribute), mine[name][2]
            if weight is other:
                continue
            alike = type(weight) is type(other) and weight.shape == other.shape and weight.dtype == other.dtype
            if not alike or weight.device != other.device or not torch.equal(weight.data, other.data):
                raise _Unfit(f"its {name} is another one, as where an adapter changes the base")

    def _use(self, mine: Mapping[str, tuple[Any, str, Any]], member: _Member) -> None:
        """Put the cohort's frozen weights in the place of the model's own, which are freed."""
        import torch

        own: dict[int, Any] = {}

        def given_back(owner: Any, attribute: str, weight: Any) -> Callable[[], None]:
            def undo() -> None:
                if id(weight) not in own:
                    # The last one may keep what there is; what is tied stays tied.
                    last = not self.members
                    own[id(weight)] = (
                        weight if last else torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
                    )
                owner._parameters[attribute] = own[id(weight)]

            return undo

        for name, (owner, attribute, other) in mine.items():
            if name not in self.weights:
                continue
            holder, as_what = self.weights[name]
            weight = getattr(holder, as_what)
            if _quantized(owner):
                if holder is not owner:
                    _put_in_place(member.model.get_base_model(), owner, holder)
                continue
            alike = weight.dtype == other.dtype and weight.device == other.device
            if weight is not other and not (alike and torch.equal(weight, other)):
                # Outside of the body, where nothing is joined.
                continue
            owner._parameters[attribute] = weight
            member.undo.append(given_back(owner, attribute, weight))

    def _meet(self, member: _Member) -> None:
        """Have calls of the body in training, and of a frozen output layer, ask the cohort."""
        import torch

        own, seat = member.body.forward, member.seat

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not (member.body.training and torch.is_grad_enabled()):
                return own(*args, **kwargs)
            try:
                call = self._called(member, args, kwargs)
            except _Unfit:
                seat.cohort.counts.alone += 1
                return own(*args, **kwargs)
            answer = seat.ask(call)
            return own(*args, **kwargs) if answer is _ALONE else answer

        member.body.forward = forward
        member.undo.append(lambda: _forget(member.body, own))
        output: Any = getattr(member.model.get_base_model(), "get_output_embeddings", lambda: None)()
        if type(output).__name__ != "Linear" or output.weight.requires_grad or output.bias is not None:
            return
        holder = next((pair for pair in self.weights.values() if getattr(*pair) is output.weight), None)
        if holder is None:
            return

        def words(states: torch.Tensor) -> Any:
            if not (member.body.training and torch.is_grad_enabled()) or seat.why_alone:
                return plain(states)
            device = states.device.type
            kind = ("output", device, torch.is_autocast_enabled(device), str(torch.get_autocast_dtype(device)))
            answer = seat.ask(_Call("output", kind, {"weight": output.weight, "states": states}, 1, 1))
            return plain(states) if answer is _ALONE else answer

        plain = output.forward
        output.forward = words
        member.undo.append(lambda: _forget(output, plain))

    def leave(self, seat: Seat) -> None:
        """Give a trial's model its own weights again."""
        import torch

        member = next(one for one in self.members if one.seat is seat)
        self.members.remove(member)
        self.pending.discard(seat.number)
        for undo in reversed(member.undo):
            undo()
        for layer in member.adapted.values():
            for weight in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight):
                weight.grad = None
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    def _stack(self) -> None:
        """Lay the trials' matrices behind each other, those of trials with equally many rows side by side.

        Nothing is moved while a pass has not gone backwards, whose gradients are of the matrices as they lie.
        """
        if self.pending or tuple((member.seat.number, member.rows) for member in self.members) == self.stacked:
            return
        self.members.sort(key=lambda member: (member.rows, member.rank, member.seat.number))
        for name, layer in self.layers.items():
            layer.stack([(member, member.adapted[name]) for member in self.members if name in member.adapted])
        self.stacked = tuple((member.seat.number, member.rows) for member in self.members)

    # -- a call -------------------------------------------------------------------------------------------------

    def _called(self, member: _Member, args: Any, kwargs: Any) -> _Call:
        """Return what a body is called with, by name.

        Raises:
            _Unfit: something else than rows of tokens, or pictures of one size, is given.
        """
        import torch

        if member.seat.why_alone:
            raise _Unfit(member.seat.why_alone)
        bound = self.signature.bind(*args, **kwargs).arguments
        further = bound.pop("kwargs", {})
        given = {name: value for name, value in {**bound, **further}.items() if value is not None}
        if "use_cache" in self.signature.parameters:
            given["use_cache"] = False
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in given.items() if name not in tensors}
        if any(isinstance(value, list | tuple | dict) or hasattr(value, "get_seq_length") for value in rest.values()):
            raise _Unfit("its body is given more than tensors")
        if rest.get("output_attentions"):
            raise _Unfit("attention weights are asked for")
        tokens = {name: value for name, value in tensors.items() if name in ROWS}
        others = {name: value for name, value in tensors.items() if name not in ROWS}
        if not tensors or ("position_ids" in tokens and "attention_mask" not in tokens):
            # Positions without a mask say where packed texts begin.
            raise _Unfit("its rows are packed")
        some = next(iter(tensors.values()))
        rows, length = some.shape[0], 0
        if tokens:
            length = next(iter(tokens.values())).shape[1]
        fits = all(value.ndim >= 2 and value.shape[:2] == (rows, length) for value in tokens.values())
        mask = tokens.get("attention_mask")
        if (
            not fits
            or any(value.shape[0] != rows for value in others.values())
            or (mask is not None and mask.ndim != 2)
        ):
            raise _Unfit("its body is given tensors of other shapes")
        device = some.device.type
        kind = (
            "body",
            device,
            torch.is_autocast_enabled(device),
            str(torch.get_autocast_dtype(device)),
            tuple(sorted((name, str(value)) for name, value in rest.items())),
            tuple(sorted((name, str(value.dtype), *value.shape[2:]) for name, value in tokens.items())),
            tuple(sorted((name, str(value.dtype), *value.shape[1:]) for name, value in others.items())),
        )
        if not member.rows:
            member.rows = rows
        return _Call("body", kind, given, rows, length)

    def parts(self, seats: Sequence[Seat], floor: int | None) -> list[list[Seat]]:
        """Return which calls to compute together, such that passes and padding cost least."""
        calls = [seat.asked for seat in seats]
        if calls[0].site != "body":
            return [list(seats)]
        self._stack()
        places = {number: place for place, (number, _) in enumerate(self.stacked)}
        least = FLOOR.get(calls[0].kind[1], 1) if floor is None else floor
        there = [(seat.asked.length, seat.asked.rows, seat) for seat in seats if seat.number in places]
        found = [sorted(part, key=lambda seat: places[seat.number]) for part in _cheapest(there, least)]
        return [*found, *([seat] for seat in seats if seat.number not in places)]

    def compute(self, seats: Sequence[Seat], calls: Sequence[_Call]) -> list[Any]:
        """Return the answer to each call.

        Raises:
            _Unfit: a layer of the body does something else than rows by themselves.
        """
        import torch

        device, enabled, named = calls[0].kind[1:4]
        dtype = getattr(torch, named.removeprefix("torch."))
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            if calls[0].site == "output":
                return self._words([call.given for call in calls])
            members = [next(one for one in self.members if one.seat is seat) for seat in seats]
            fresh = [member for member in members if not member.seat.checked]
            if fresh:
                self._check(members, calls, fresh)
                if any(member.seat.why_alone for member in members):
                    # The others come together again at their next call.
                    return [_ALONE] * len(seats)
            counts = seats[0].cohort.counts
            counts.tokens += sum(call.rows * max(1, call.length) for call in calls)
            counts.computed += sum(call.rows for call in calls) * max(1, *(call.length for call in calls))
            return self._forward(members, calls)

    def _forward(self, members: Sequence[_Member], calls: Sequence[_Call]) -> list[Any]:
        parts, begin = [], 0
        for member, call in zip(members, calls, strict=True):
            parts.append(_Part(member, begin, begin + call.rows))
            begin += call.rows
        length = max(call.length for call in calls)
        inputs = {name: self._joined(name, [call.given[name] for call in calls], length) for name in calls[0].given}
        if length > min(call.length for call in calls) and "attention_mask" not in inputs:
            inputs["attention_mask"] = _mask(calls, length)
        token = _passing.set(tuple(parts))
        try:
            with self._attention(members):
                found = self.body(**inputs)
        finally:
            _passing.reset(token)
        return _shares(found, calls, length)

    def _joined(self, name: str, values: Sequence[Any], length: int) -> Any:
        """Return the values of one argument below each other, rows filled up at their ends."""
        import torch
        from torch.nn import functional

        if not isinstance(values[0], torch.Tensor):
            return values[0]
        if name in ROWS:
            # Behind the rows, so that each token keeps its place, on whichever side a trial fills up its own.
            padding = getattr(getattr(self.body, "config", None), "pad_token_id", None) if name == "input_ids" else 0
            values = [
                value
                if value.shape[1] == length
                else functional.pad(value, (0, 0) * (value.ndim - 2) + (0, length - value.shape[1]), value=padding or 0)
                for value in values
            ]
        return torch.cat(list(values))

    def _words(self, given: Sequence[Mapping[str, Any]]) -> list[Any]:
        import torch
        from torch.nn import functional

        states = [one["states"] for one in given]
        flat = torch.cat([one.reshape(-1, one.shape[-1]) for one in states])
        found = functional.linear(flat, given[0]["weight"])
        pieces = torch.split(found, [one.numel() // one.shape[-1] for one in states])
        return [piece.reshape(*one.shape[:-1], -1) for piece, one in zip(pieces, states, strict=True)]

    def _attention(self, members: Sequence[_Member]) -> AbstractContextManager[None]:
        """Have attention take each row's own dropout, where the trials' differ."""
        if not self.body.training or len({_attention_rates(member.body) for member in members}) == 1:
            return nullcontext()
        return self._by_rows()

    @contextmanager
    def _by_rows(self) -> Iterator[None]:
        if self.implementation != "sdpa":
            raise _Unfit("dropout differs, and attention is not torch's")
        _offer_attention()
        config = self.body.config
        config._attn_implementation = ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = self.implementation

    def _check(self, members: Sequence[_Member], calls: Sequence[_Call], fresh: Sequence[_Member]) -> None:
        """Compare what the joined pass says of new trials' rows, without dropout, with what their own bodies say."""
        import torch

        self.body.eval()
        try:
            with torch.no_grad(), self._by_rows() if self.implementation == "sdpa" else nullcontext():
                token = _noticed.set(self.attending)
                try:
                    found = self._forward(members, calls)
                finally:
                    _noticed.reset(token)
        finally:
            self.body.train()
        for member, call, mine in zip(members, calls, found, strict=True):
            if member not in fresh:
                continue
            member.seat.checked = True
            member.body.eval()
            try:
                with torch.no_grad():
                    own = member.body(**call.given)
            finally:
                member.body.train()
            if not _same(mine, own, call.given.get("attention_mask")):
                member.seat.why_alone = "its body says something else of its rows beside those of others"
            elif other := self._unserved(member):
                member.seat.why_alone = f"its {other} has a dropout of its own, which rows cannot have"

    def _unserved(self, member: _Member) -> str | None:
        """Return a module that has another dropout than the body's, and applies it where rows cannot have their own."""
        theirs = dict(member.body.named_modules())
        for name, module in self.body.named_modules():
            own = theirs.get(name)
            if name in self.attending or own is None:
                continue
            for attribute, value in vars(module).items():
                if isinstance(value, float) and "drop" in attribute and getattr(own, attribute, value) != value:
                    return f"{name}.{attribute}"
        return None

    # -- gradients ----------------------------------------------------------------------------------------------

    def hand_out(self, seats: Sequence[Seat]) -> None:
        """Give each of these trials the gradients of its matrices, as views of the joined ones."""
        known = {id(seat) for seat in seats}
        for layer in self.layers.values():
            layer.hand_out(known)

    def forget_gradients(self) -> None:
        """Drop what a backward pass left that did not end."""
        for layer in self.layers.values():
            layer.forget_gradients()


class _Layer:
    """A linear layer of the shared body with the updates of those trials that adapt it."""

    def __init__(self, base: _Base, name: str, module: Any) -> None:
        self.base, self.name, self.plain = base, name, module.forward
        self.a: Any = None
        """``(trials, rank, in)``, filled up with zeros to the largest rank."""
        self.b: Any = None
        """``(trials, rank, out)``: the transposed ``B``, so that each trial's part is dense in memory."""
        self.owners: list[tuple[_Member, Any]] = []
        self.places: dict[int, int] = {}
        module.forward = self

    def stack(self, owners: Sequence[tuple[_Member, Any]]) -> None:
        """Lay the matrices of LoRA layers behind each other; the layers' own weights become views of them."""
        import torch

        self.owners = list(owners)
        self.places = {id(member): place for place, (member, _) in enumerate(owners)}
        self.a = self.b = None
        if not owners:
            return
        pairs = [(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for _, layer in owners]
        rank = max(a.shape[0] for a, _ in pairs)
        first = pairs[0][0]
        with torch.no_grad():
            self.a = torch.zeros(len(pairs), rank, first.shape[1], dtype=first.dtype, device=first.device)
            self.b = torch.zeros(len(pairs), rank, pairs[0][1].shape[0], dtype=first.dtype, device=first.device)
            for place, (a, b) in enumerate(pairs):
                mine_a, mine_b = self.a[place, : a.shape[0]], self.b[place, : a.shape[0]].t()
                mine_a.copy_(a)
                mine_b.copy_(b)
                a.data, b.data = mine_a, mine_b
        self.a.requires_grad_(True)
        self.b.requires_grad_(True)
        scales = [float(layer.scaling[ADAPTER]) for _, layer in owners]
        self.scales = torch.tensor(scales, dtype=first.dtype, device=first.device)[:, None, None]
        self.ranks = [a.shape[0] for a, _ in pairs]
        self.rates = [float(getattr(layer.lora_dropout[ADAPTER], "p", 0.0)) for _, layer in owners]

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's outputs with each trial's update on its own rows."""
        import torch

        result: torch.Tensor = self.plain(x, *args, **kwargs)
        parts = _passing.get()
        if x.shape[0] != parts[-1].end:
            raise _Unfit(f"{self.name} is given something else than the rows of the batch")
        runs = self._runs(parts)
        stacks = self._stacks([places for _, _, places in runs if places])
        if len(runs) == 1:
            return self._updated(x, result, runs[0][2], *next(stacks)) if runs[0][2] else result
        sizes = [end - begin for begin, end, _ in runs]
        # Split, and not cut out one by one: each cut would have a gradient as large as the whole.
        pieces = [
            self._updated(mine, piece, places, *next(stacks)) if places else piece
            for (_, _, places), mine, piece in zip(runs, torch.split(x, sizes), torch.split(result, sizes), strict=True)
        ]
        return torch.cat(pieces)

    def _runs(self, parts: Sequence[_Part]) -> list[tuple[int, int, list[int]]]:
        """Return rows whose updates are one product, with the places of their trials: none for those without an update.

        They are of neighbours with equally many rows. On a CPU their ranks are equal too: there zeros cost what other
        numbers do, and a further product costs little.
        """
        runs: list[tuple[int, int, list[int]]] = []
        last: tuple[int, int] | None = None
        for part in parts:
            place = self.places.get(id(part.member))
            like = None
            if place is not None:
                like = part.end - part.begin, self.ranks[place] if self.a.device.type == "cpu" else 0
            if runs and like == last:
                begin, _, places = runs[-1]
                runs[-1] = begin, part.end, places if place is None else [*places, place]
            else:
                runs.append((part.begin, part.end, [] if place is None else [place]))
            last = like
        return runs

    def _stacks(self, wanted: Sequence[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield the matrices and scales of these places, each as one tensor that is no longer than its largest rank."""
        import torch

        every = (self.a, self.b, self.scales)
        if len(wanted) == 1 and len(wanted[0]) == len(self.a) and list(wanted[0]) == list(range(len(self.a))):
            yield every
            return
        if [place for places in wanted for place in places] == list(range(len(self.a))):
            # One backward pass for all pieces; each taken by itself would have a gradient as large as the whole.
            pieces = list(zip(*(torch.split(one, [len(places) for places in wanted]) for one in every), strict=True))
        else:
            pieces = [(self.a[list(places)], self.b[list(places)], self.scales[list(places)]) for places in wanted]
        for places, (a, b, scales) in zip(wanted, pieces, strict=True):
            rank = max(self.ranks[place] for place in places)
            yield a[:, :rank], b[:, :rank], scales

    def _updated(
        self,
        x: torch.Tensor,
        result: torch.Tensor,
        places: Sequence[int],
        a: torch.Tensor,
        b: torch.Tensor,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        """Return the outputs of some rows with the updates of the trials at these places."""
        import torch

        given = x.to(a.dtype).reshape(len(places), -1, x.shape[-1])
        if self.base.body.training:
            given = _dropped(given, [self.rates[place] for place in places], [1] * len(places))
        low = torch.bmm(given, a.transpose(1, 2)) * scales
        if result.dtype == b.dtype or torch.is_autocast_enabled(result.device.type):
            onto = result.reshape(len(places), -1, result.shape[-1])
            return torch.baddbmm(onto, low, b).reshape(result.shape)
        return (result + torch.bmm(low, b).reshape(result.shape)).to(result.dtype)

    def hand_out(self, seats: set[int]) -> None:
        """Give the trials of these seats, by identity, their parts of the gradients."""
        if self.a is None or self.a.grad is None:
            return
        for (member, layer), a, b in zip(self.owners, self.a.grad.unbind(0), self.b.grad.unbind(0), strict=True):
            if id(member.seat) not in seats or not member.seat.shares:
                continue
            weights = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            rank = weights[0].shape[0]
            for weight, gradient in zip(weights, (a[:rank], b[:rank].t()), strict=True):
                if weight.grad is None:
                    weight.grad = gradient
                else:
                    weight.grad.add_(gradient)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Begin anew; what was handed out stays with the trials."""
        if self.a is not None:
            self.a.grad = self.b.grad = None


class _Dropout:
    """A dropout of the shared body, whose rate is each trial's own."""

    def __init__(self, base: _Base, name: str) -> None:
        self.base, self.name = base, name

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values, some of them zero, in training."""
        if not self.base.body.training:
            return x
        parts = _passing.get()
        rates = [float(part.member.body.get_submodule(self.name).p) for part in parts]
        if len(set(rates)) > 1 and x.shape[0] != parts[-1].end:
            raise _Unfit(f"{self.name} is given something else than the rows of the batch")
        return _dropped(x, rates, [part.end - part.begin for part in parts])


class _Saved:
    """A module of the body that each trial trains in full: it is computed by each on its own rows."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return what the trials' own modules make of their rows."""
        import torch

        parts = _passing.get()
        if x.shape[0] != parts[-1].end or any(isinstance(one, torch.Tensor) for one in (*args, *kwargs.values())):
            raise _Unfit(f"{self.name} is given something else than the rows of the batch")
        pieces = torch.split(x, [part.end - part.begin for part in parts])
        return torch.cat(
            [
                part.member.body.get_submodule(self.name)(piece, *args, **kwargs)
                for part, piece in zip(parts, pieces, strict=True)
            ]
        )


def _dropped(x: torch.Tensor, rates: Sequence[float], rows: Sequence[int]) -> torch.Tensor:
    """Return values of which a share is zero: of so many rows each the share of their rate."""
    import torch
    from torch.nn import functional

    if len(set(rates)) == 1:
        return functional.dropout(x, rates[0]) if rates[0] else x
    rate = _rates_of_rows(tuple(rates), tuple(rows), str(x.device)).reshape(-1, *(1 for _ in x.shape[1:]))
    kept = torch.rand(x.shape, device=x.device) >= rate
    return x * (kept / (1 - rate).clamp(min=1e-6)).to(x.dtype)


@lru_cache(maxsize=256)
def _rates_of_rows(rates: tuple[float, ...], rows: tuple[int, ...], device: str) -> torch.Tensor:
    """Return the rate of each row. Kept, as a GPU is waited for each time that something is copied to it."""
    import torch

    return torch.tensor([rate for rate, count in zip(rates, rows, strict=True) for _ in range(count)], device=device)


_noticed: ContextVar[set[str] | None] = ContextVar("noticed", default=None)
"""Where modules are noted that :func:`_attend` was called for."""


def _offer_attention() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if ATTENTION not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0, **kwargs: Any
) -> tuple[Any, None]:
    """Return transformers' attention by torch, each trial's rows with its own dropout."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    parts = _passing.get()
    base = parts[0].member.seat.cohort.base
    assert base is not None
    name = base.modules[id(module)]
    noticed = _noticed.get()
    if noticed is not None:
        noticed.add(name)
    if not module.training:
        found: tuple[Any, None] = attend(module, query, key, value, attention_mask, dropout=0.0, **kwargs)
        return found
    if _rate(module) != dropout or kwargs.get("position_bias") is not None or query.shape[0] != parts[-1].end:
        raise _Unfit(f"the dropout of {name} is not found")
    sizes = [part.end - part.begin for part in parts]
    pieces = []
    for part, *mine in zip(parts, *(torch.split(one, sizes) for one in (query, key, value)), strict=True):
        mask = attention_mask
        if mask is not None and mask.shape[0] == query.shape[0]:
            mask = mask[part.begin : part.end]
        rate = _rate(part.member.body.get_submodule(name))
        pieces.append(attend(module, *mine, mask, dropout=rate, **kwargs)[0])
    return torch.cat(pieces), None


def _rate(module: Any) -> float | None:
    """Return the rate of an attention module's dropout, or None where it is not found."""
    for name in RATES:
        value = getattr(module, name, None)
        value = getattr(value, "p", value)
        if isinstance(value, float | int):
            return float(value)
    return None


def _attention_rates(body: Any) -> tuple[Any, ...]:
    """Return what a body's configuration says of dropout."""
    config = getattr(body, "config", None)
    return tuple(getattr(config, name, None) for name in DROPOUTS)


def _body(model: Any) -> tuple[str, Any]:
    """Return the name and the module of the one body of a LoRA model.

    Raises:
        _Unfit: it is another adapter's, or has several bodies.
    """
    from peft import PeftModel

    config = getattr(model, "peft_config", {}).get(ADAPTER) if isinstance(model, PeftModel) else None
    if config is None or type(config).__name__ != "LoraConfig" or getattr(config, "is_prompt_learning", False):
        raise _Unfit("its adapter is not LoRA")
    base = model.get_base_model()
    bodies = find_bodies(base)
    if len(bodies) != 1 or not bodies[0]:
        raise _Unfit("its model has not one body beside a head")
    body = base.get_submodule(bodies[0])
    if getattr(body, "gradient_checkpointing", False):
        raise _Unfit("it computes activations again in the backward pass")
    return bodies[0], body


def _trained(body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the LoRA layers of a body, and its other trained modules, by name.

    Raises:
        _Unfit: something else is trained.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    adapted: dict[str, Any] = {}
    saved: dict[str, Any] = {}
    trained: set[int] = set()
    for name, module in body.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            saved[name] = module
            trained |= {id(weight) for weight in module.parameters()}
        elif isinstance(module, LoraLayer):
            linear = ADAPTER in module.lora_A and ADAPTER not in module.lora_embedding_A
            plain = linear and not module.lora_variant and not module.lora_bias.get(ADAPTER)
            if not plain or hasattr(module, "kernel_size") or module.lora_A[ADAPTER].weight.ndim != 2:
                raise _Unfit(f"its {name} is adapted in another way than by two matrices")
            adapted[name] = module
            trained |= {id(weight) for weight in (module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight)}
    for name, weight in body.named_parameters():
        if weight.requires_grad and id(weight) not in trained:
            raise _Unfit(f"its {name} is trained in its place")
    if not adapted:
        raise _Unfit("nothing of its body is adapted")
    return adapted, saved


def _owned(model: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield each weight's name as without an adapter, the module that owns it, as what, and the weight.

    What an adapter adds or keeps twice is left out.
    """
    from peft.utils import ModulesToSaveWrapper

    within: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in within):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            within.append(name)
            continue
        path = [part for part in name.split(".") if part != "base_layer"]
        if any(part.startswith("lora_") for part in path):
            continue
        for attribute, weight in module._parameters.items():
            if weight is not None:
                yield ".".join([*path, attribute]), module, attribute, weight


def _settings(body: Any) -> dict[str, Any]:
    """Return a body's configuration without its dropout."""
    config: Any = getattr(body, "config", None)
    settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
    return {name: value for name, value in settings.items() if name not in DROPOUTS}


def _quantized(module: Any) -> bool:
    """Say whether a module's own weights are no plain floating point numbers."""
    return any(w is not None and not w.is_floating_point() for w in module._parameters.values())


def _put_in_place(model: Any, own: Any, shared: Any) -> None:
    """Put a shared module in the place of a model's own, wherever that is."""
    for name, module in list(model.named_modules()):
        if module is own:
            model.set_submodule(name, shared)


@contextmanager
def _unwrapped(body: Any) -> Iterator[None]:
    """Take a forward method of the instance's own away, which would be copied along."""
    own = vars(body).pop("forward", None)
    try:
        yield
    finally:
        if own is not None:
            body.forward = own


def _forget(module: Any, own: Any) -> None:
    """Give a module its class's forward method again, or its own earlier one."""
    vars(module).pop("forward", None)
    if module.forward != own:
        module.forward = own


def _cheapest(calls: Sequence[tuple[int, int, Seat]], floor: int) -> list[list[Seat]]:
    """Return the division of calls, given by length and rows, that costs least: a pass takes its tokens or the floor.

    Calls that are computed together are neighbours in length; then each prefix of the sorted calls has a best division.
    """
    calls = sorted(calls, key=lambda call: (call[0], call[2].number))
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(calls) + 1):
        length = calls[end - 1][0]
        options = []
        for begin in range(end):
            rows = sum(call[1] for call in calls[begin:end])
            options.append((best[begin][0] + max(floor, rows * max(1, length)), begin))
        best.append(min(options))
    found, end = [], len(calls)
    while end:
        begin = best[end][1]
        found.append([call[2] for call in calls[begin:end]])
        end = begin
    return found[::-1]


def _mask(calls: Sequence[_Call], length: int) -> torch.Tensor:
    """Return which tokens are the calls' own, ``(rows, tokens)``, where they say nothing of it."""
    import torch

    some = next(value for name, value in calls[0].given.items() if name in ROWS)
    mask = torch.zeros(sum(call.rows for call in calls), length, dtype=torch.long, device=some.device)
    begin = 0
    for call in calls:
        mask[begin : begin + call.rows, : call.length] = 1
        begin += call.rows
    return mask


def _shares(value: Any, calls: Sequence[_Call], length: int) -> list[Any]:
    """Return each call's share of what a body returned: its rows, without the padding of others.

    Raises:
        _Unfit: the body returned something else than rows.
    """
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return [value] * len(calls)
    if isinstance(value, torch.Tensor):
        sizes = [call.rows for call in calls]
        if value.ndim not in (2, 3) or value.shape[0] != sum(sizes):
            raise _Unfit("its body returns something else than rows")
        padded = value.ndim == 3 and length and value.shape[1] == length
        return [
            mine[:, : call.length] if padded and call.length < length else mine
            for call, mine in zip(calls, torch.split(value, sizes), strict=True)
        ]
    if isinstance(value, tuple | list):
        shares = [_shares(one, calls, length) for one in value]
        return [type(value)(own) for own in zip(*shares, strict=True)]
    if isinstance(value, dict):
        # transformers' outputs are dictionaries whose class takes their items.
        named = {name: _shares(one, calls, length) for name, one in value.items()}
        return [type(value)(**{name: own[i] for name, own in named.items()}) for i in range(len(calls))]
    raise _Unfit(f"its body returns a {type(value).__name__}")


def _same(found: Any, own: Any, mask: Any) -> bool:
    """Say whether two outputs of a body are alike where there are tokens."""
    import torch

    if isinstance(own, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != own.shape:
            return False
        difference = (found - own).abs().float()
        if mask is not None and own.ndim == 3 and own.shape[:2] == mask.shape:
            difference = difference * mask[:, :, None]
        largest = float(own.abs().max()) if own.numel() else 0.0
        limit = TOLERANCE.get(str(own.dtype).removeprefix("torch."), 1e-4) * max(1.0, largest)
        worst = float(difference.max()) if difference.numel() else 0.0
        # What is not finite is the trial's own matter.
        return worst <= limit or not bool(torch.isfinite(own).all())
    if isinstance(own, dict):
        keys = [key for key in own if key != "past_key_values" and own[key] is not None]
        return isinstance(found, dict) and all(_same(found.get(key), own[key], mask) for key in keys)
    if isinstance(own, tuple | list):
        return len(found) == len(own) and all(_same(a, b, mask) for a, b in zip(found, own, strict=True))
    return True
