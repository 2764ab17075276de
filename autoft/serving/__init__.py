"""A model as a web service: typed requests and answers, batches of concurrent requests, limits, metrics, a page to try it.

:func:`make_app` makes the application, for any server of ASGI applications; :func:`serve` runs it until it is told to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.errors import ServingError
from autoft.serving.limits import Limits
from autoft.serving.server import serve

if TYPE_CHECKING:
    from fastapi import FastAPI

    from autoft.artifact import LoadedModel

__all__ = ["Limits", "make_app", "serve"]


def make_app(model: LoadedModel, limits: Limits | None = None) -> FastAPI:
    """Return the web application that serves a model.

    The model is asked from one thread that runs as long as the application does, and once here for each of the task's demo
    rows, which the page and the OpenAPI description show.

    Args:
        model: as :func:`autoft.load` gives it.
        limits: of requests and batches; by default those of :class:`Limits`.

    Raises:
        ServingError: FastAPI or what else the extra ``serve`` brings is not installed, or the model fails on each of the
            demo rows that it takes.
    """
    try:
        from autoft.serving.app import make_app as made
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    return made(model, limits)


def missing_extra(error: ModuleNotFoundError) -> ServingError:
    """Return what to tell where a package of the extra ``serve`` is not installed."""
    return ServingError(f"serving needs {error.name}, which is not installed; pip install 'autoft[serve]'")
