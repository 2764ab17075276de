"""What the contract asks of every task, by the kit of autoft."""

from __future__ import annotations

from autoft_summarization import autoft_tasks

from autoft.testing import parametrize_with_checks


@parametrize_with_checks(autoft_tasks())
def test_conformance(check):
    check()
