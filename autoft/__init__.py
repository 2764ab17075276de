"""autoft: search, fine-tune and compress transformers until they fit your hardware.

::

    import autoft

    run = autoft.search("recipe.yaml")
    run.best.predict(["Not bad at all."])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoft.version import __version__

if TYPE_CHECKING:
    from autoft.api import Run, check, explain, hardware, load, predict, search, write_report

__all__ = ["Run", "__version__", "check", "explain", "hardware", "load", "predict", "search", "write_report"]


def __getattr__(name: str) -> Any:
    # The API pulls in libraries that the command line does not need for most commands.
    if name in __all__:
        from autoft import api

        return getattr(api, name)
    raise AttributeError(f"module 'autoft' has no attribute {name!r}")
