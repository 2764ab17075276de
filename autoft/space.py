"""Search spaces in Optuna's terms, free of torch and optuna.

A space is an ordered mapping from a parameter's name (``train.epochs``, ``lora.rank``) to its domain.
Recipes narrow, pin or widen a domain: a scalar pins, a list is a choice, ``{low, high, log}`` is a range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Categorical", "Domain", "Float", "Int", "SearchSpace", "domain_from_json", "domain_from_recipe"]

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Float:
    """A real parameter from ``low`` to ``high`` (both included), uniform or log-uniform."""

    low: float
    high: float
    default: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.default, self.log)

    def contains(self, value: object) -> bool:
        """Say whether ``value`` lies in the range."""
        return _is_number(value) and self.low <= float(value) <= self.high  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Int:
    """A whole parameter from ``low`` to ``high`` (both included)."""

    low: int
    high: int
    default: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.default, self.log)

    def contains(self, value: object) -> bool:
        """Say whether ``value`` is a whole number in the range."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Categorical:
    """One of ``choices``; the first is the default unless ``default`` names another.

    Where it is ``open``, a recipe may name any other text, as that of a model; the search does not invent one.
    """

    choices: tuple[Scalar, ...]
    default: Scalar = None
    open: bool = False

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("a categorical parameter needs at least one choice")
        if self.default not in self.choices:
            object.__setattr__(self, "default", self.choices[0])

    def contains(self, value: object) -> bool:
        """Say whether ``value`` is one of the choices (True is not 1)."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)

    def __str__(self) -> str:
        return ", ".join(str(choice) for choice in self.choices)


Domain = Float | Int | Categorical
SearchSpace = Mapping[str, Domain]

_KINDS: dict[str, type[Float] | type[Int] | type[Categorical]] = {
    "float": Float,
    "int": Int,
    "categorical": Categorical,
}


def domain_to_json(domain: Domain) -> dict[str, Any]:
    """Return the domain as plain JSON."""
    fields = asdict(domain)
    if isinstance(domain, Categorical):
        fields["choices"] = list(domain.choices)
    return {"kind": type(domain).__name__.lower(), **fields}


def domain_from_json(value: Mapping[str, Any]) -> Domain:
    """Rebuild a domain from :func:`domain_to_json`."""
    fields = dict(value)
    kind = _KINDS[fields.pop("kind")]
    if kind is Categorical:
        fields["choices"] = tuple(fields["choices"])
    return kind(**fields)


def domain_from_recipe(given: object, known: Domain) -> Domain:
    """Return what a recipe makes of a known domain.

    Args:
        given: a scalar (pins), a list (a choice), or a mapping with ``low``, ``high`` and optionally ``log``.
        known: the domain as the strategy or the task declares it; its type decides what is allowed.

    Raises:
        ValueError: the value does not have the parameter's type, or a range is empty.
    """
    if isinstance(given, Mapping):
        return _range_from_recipe(given, known)
    choices = list(given) if isinstance(given, list | tuple) else [given]
    if not choices:
        raise ValueError("an empty list; give at least one value")
    values = tuple(_typed(choice, known) for choice in choices)
    default = known.default if known.default in values else values[0]
    return Categorical(values, default)


def check_widened(domain: Domain, known: Domain, *, fixed: bool) -> None:
    """Refuse values that make no sense for a parameter, though a recipe may widen what is searched.

    Args:
        domain: what the recipe made of the parameter.
        known: the domain as it was declared.
        fixed: ``known`` is the widest there is. Otherwise numbers keep the sign of the declared ones, and what was
            declared as a share (from 0 to 1) stays one.

    Raises:
        ValueError: a value lies outside.
    """
    if isinstance(known, Categorical):
        return
    values = domain.choices if isinstance(domain, Categorical) else (domain.low, domain.high)
    low, high = -math.inf, math.inf
    if fixed:
        low, high = known.low, known.high
    elif known.low >= 0:
        low = 0.0
        high = 1.0 if isinstance(known, Float) and known.high <= 1 else math.inf
    for value in values:
        assert isinstance(value, int | float)
        if not low <= value <= high or (value == 0 and known.log):
            above = "above 0" if known.log else f"at least {low:g}"
            allowed = above if high == math.inf else f"{above} and at most {high:g}"
            raise ValueError(f"has to be {allowed}, given {value:g}")


def _range_from_recipe(given: Mapping[str, Any], known: Domain) -> Domain:
    if isinstance(known, Categorical):
        raise ValueError(f"a range is not possible here; give one or a list of: {known}")
    extra = set(given) - {"low", "high", "log"}
    if extra or not {"low", "high"} <= set(given):
        raise ValueError(f"a range is {{low, high}} and optionally log, given {dict(given)!r}")
    low, high = _typed(given["low"], known), _typed(given["high"], known)
    log = bool(given.get("log", known.log))
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")
    default = min(max(known.default, low), high)
    if isinstance(known, Int):
        return Int(int(low), int(high), int(default), log)
    return Float(float(low), float(high), float(default), log)


def _typed(value: object, known: Domain) -> Scalar:
    if isinstance(known, Categorical):
        if known.contains(value) or (known.open and isinstance(value, str) and value.strip()):
            return value  # type: ignore[return-value]
        kinds = {type(choice) for choice in known.choices}
        if kinds <= {int, float} and _is_number(value):
            return value  # type: ignore[return-value]
        if known.open:
            raise ValueError(f"needs a text, given {value!r}")
        raise ValueError(f"allowed: {known}; given {value!r}")
    if not _is_number(value) or (isinstance(known, Int) and int(value) != value):  # type: ignore[call-overload]
        kind = "a whole number" if isinstance(known, Int) else "a number"
        raise ValueError(f"needs {kind} (known range: {known}), given {value!r}")
    return int(value) if isinstance(known, Int) else float(value)  # type: ignore[call-overload, arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_range(low: float, high: float, default: float, log: bool) -> None:
    if not low <= default <= high:
        raise ValueError(f"needs low <= default <= high, given {low}, {default}, {high}")
    if log and low <= 0:
        raise ValueError(f"a log range needs low above 0, given {low}")
