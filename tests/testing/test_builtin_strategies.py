"""The built-in strategies and cost metrics pass the kit that strangers' have to pass."""

from __future__ import annotations

from autoft.measures import autoft_metrics
from autoft.strategies import autoft_strategies
from autoft.testing import parametrize_with_checks


@parametrize_with_checks([*autoft_strategies(), *autoft_metrics()])
def test_conformance(check):
    check()
