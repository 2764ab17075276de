"""The plugins here are not installed with autoft: test_third_party.py installs them, and runs their own tests."""

from __future__ import annotations

collect_ignore_glob = ["autoft-*"]
