"""The built-in strategies and cost metrics pass the kit that strangers' have to pass."""

from __future__ import annotations

import pytest

from autoft.measures import autoft_metrics
from autoft.strategies import autoft_strategies
from autoft.testing import checks_of


def nf4_says_it(check):
    """Say whether a check is of an adapter over fp4: layers of the same class, with another table of 16 values, as over nf4."""
    return "[fp4+" in check.name and check.subject != "lora"


CHECKS = [check for check in checks_of([*autoft_strategies(), *autoft_metrics()]) if not nf4_says_it(check)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.subject}-{check.name}")
def test_conformance(check):
    check()
