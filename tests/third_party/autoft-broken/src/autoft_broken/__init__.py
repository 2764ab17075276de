"""Needs a package that nobody has, as a plugin does whose dependencies were not installed."""

from __future__ import annotations

import a_package_that_nobody_has  # type: ignore[import-not-found]

__all__ = ["a_package_that_nobody_has"]
