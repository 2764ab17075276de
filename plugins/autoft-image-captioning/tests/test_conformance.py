"""What autoft asks of every plugin."""

from __future__ import annotations

from autoft_image_captioning import autoft_tasks

from autoft.testing import parametrize_with_checks


@parametrize_with_checks(autoft_tasks())
def test_conformance(check):
    check()
