"""The conformance kit: checks that show whether a task, a strategy or a cost metric does what the contract says.

In a plugin's tests::

    from autoft.testing import parametrize_with_checks
    from autoft_my_task import autoft_tasks

    @parametrize_with_checks(autoft_tasks())
    def test_conformance(check):
        check()

Without pytest: :func:`run_checks`, or ``autoft plugins check my-task``. The way of checks as named functions that suit
what an object can do is that of scikit-learn's estimator checks.
"""

from __future__ import annotations

from autoft.testing.checks import (
    Check,
    CheckResult,
    check_plugin,
    checks_of,
    parametrize_with_checks,
    run_checks,
)
from autoft.testing.models import kind_of, tiny_model
from autoft.testing.workbench import CheckFailed

__all__ = [
    "Check",
    "CheckFailed",
    "CheckResult",
    "check_plugin",
    "checks_of",
    "kind_of",
    "parametrize_with_checks",
    "run_checks",
    "tiny_model",
]
