"""autoft: search, fine-tune and compress transformers until they fit your hardware.

::

    import autoft

    run = autoft.search("recipe.yaml")
    run.best.predict(["Not bad at all."])
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autoft.version import __version__

if TYPE_CHECKING:
    from autoft.api import (
        Added,
        Draft,
        Exported,
        Picked,
        Question,
        Run,
        Verified,
        add,
        check,
        compare,
        draft,
        explain,
        export,
        hardware,
        load,
        measure_device,
        pick,
        predict,
        push,
        search,
        serve,
        verify,
        write_report,
    )

__all__ = [
    "Added",
    "Draft",
    "Exported",
    "Picked",
    "Question",
    "Run",
    "Verified",
    "__version__",
    "add",
    "check",
    "compare",
    "draft",
    "explain",
    "export",
    "hardware",
    "load",
    "measure_device",
    "pick",
    "predict",
    "push",
    "search",
    "serve",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # The API pulls in libraries that the command line does not need for most commands.
    if name in __all__:
        from autoft import api

        return getattr(api, name)
    raise AttributeError(f"module 'autoft' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps the names of the API for its functions, where Python would put the modules ``search`` and ``hardware``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in __all__ or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
