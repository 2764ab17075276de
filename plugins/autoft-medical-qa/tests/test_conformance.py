"""What autoft asks of every plugin."""

from __future__ import annotations

import pytest
from autoft_medical_qa import autoft_tasks

from autoft.testing import checks_of

EXPORTS = ("check_compressor[onnx]", "check_compressor[onnx-int8]", "check_compressor[onnx-static-int8]")
"""The slowest checks by far. Only multiple choice has inputs of its own: the other forms export as what they build on."""

CHECKS = [
    check for check in checks_of(autoft_tasks()) if check.subject == "medical-qa-choice" or check.name not in EXPORTS
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.subject}-{check.name}")
def test_conformance(check):
    check()
