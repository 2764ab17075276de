"""``python -m autoft``."""

from autoft.cli import main

main()
