"""Optuna's dashboard on a run: a copy of its study in memory, made from the run folder alone.

The study of a search lives in the search; what stays are the results of its trials. From these a study is built that has
what a person wants to see: names, costs, curves, limits. What is done in the browser can't reach the run, and requests that
would change the copy are refused too.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autoft.errors import AutoftError, PluginError
from autoft.frozen_trials import finished_trial, named_study, running_trial
from autoft.plans.plan import Plan
from autoft.progress import RunReader, View, printable
from autoft.report.views import column_title, cost_text, figure_text, metric_title
from autoft.rundir import RunDir, TrialResult
from autoft.screen import describe, outcome

if TYPE_CHECKING:
    import optuna

__all__ = ["PORT", "Dashboard", "study_of"]

PORT = 8080
"""Of Optuna's own command too."""

LOOKED_EVERY = 2.0
"""Seconds between two looks into the run folder at least."""

MOST_TAKEN_BACK = 10_000
"""Numbers that were given to no trial, at most: each becomes one of the study."""

READING = frozenset({"GET", "HEAD"})

OWN = frozenset({"same-origin", "none"})
"""What browsers say of a request by a page of the dashboard's own, and of one that a person typed (https://www.w3.org/TR/fetch-metadata)."""


def study_of(view: View, run: RunDir) -> optuna.Study:
    """Return a study in memory with all trials of a run, under the numbers that they have there.

    A trial has its parameters, the objectives of its best variant that fits (else of its best one), its validation curve,
    how far it is over each limit, and as user attributes what a person looks for: model, pipeline, variant, costs. Trials
    that are running are there too. A number that was given to no trial is a failed one that says so.

    Args:
        view: of the run.
        run: its folder, for the times.

    Raises:
        AutoftError: the run has no plan yet.
    """
    import optuna

    plan = view.plan
    if plan is None:
        raise AutoftError(f"{run.path}: no search has begun here; there is nothing to show yet")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = named_study(plan, plan.name, optuna.storages.InMemoryStorage())
    results = {result.number: result for result in view.results}
    going = (
        {one.trial: one.config for one in view.progress.activities}
        if view.progress is not None and view.state == "running"
        else {}
    )
    last = max([*results, *going], default=-1)
    if last >= len(results) + len(going) + MOST_TAKEN_BACK:
        raise AutoftError(f"{run.path}: is damaged: there are {len(results)} trials, and one has the number {last}")
    for number in range(last + 1):
        if number in results:
            frozen = finished_trial(plan, results[number], run)
        elif number in going:
            frozen = running_trial(plan, going[number], run)
        else:
            frozen = optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL, user_attrs={"outcome": "taken back before it was done"}
            )
        study.add_trial(frozen)
    return study


def _study_note(view: View) -> str:
    """Return what the dashboard shows above the trials, as Markdown."""
    plan = view.plan
    assert plan is not None
    told = view.figures
    lines = [
        f"**{_escaped(plan.name)}**: {_escaped(plan.task)}, {_escaped(metric_title(plan, plan.objective))}; {view.state}."
    ]
    objective = _escaped(plan.objective)
    if told.default is not None:
        lines.append(f"The plain default fine-tune, trial 0, has {objective} {figure_text(told.default)}.")
    if told.chosen is not None:
        one = told.chosen
        costs = ", ".join(cost_text(c, one.costs.get(c)) for c in ("model_size_bytes", "latency_p50_ms"))
        verb = "is" if view.state == "finished" else "would be"
        lines.append(
            f"Shipped {verb} trial {one.trial}, {_escaped(one.variant)}: {objective} {figure_text(one.objective)}, {costs}."
        )
    lines.append("This is a copy for looking at: nothing that is done here changes the run.")
    return "\n\n".join(lines)


def _trial_note(plan: Plan, result: TrialResult) -> str:
    """Return what the dashboard shows of a trial, as Markdown: each variant with its figures."""
    columns = ["model_size_bytes", "latency_p50_ms", "inference_memory_bytes"]
    columns += [limit.column for limit in plan.budget if limit.column not in {*columns, "train_memory_bytes"}]
    heads = ["variant", "", plan.objective, *map(column_title, columns)]
    rows = [
        [
            one.name,
            "over the budget" if one.violations else one.reason or one.state,
            figure_text(one.validation.get(plan.objective)),
            *(cost_text(column, one.costs.get(column)) for column in columns),
        ]
        for one in result.variants
    ]
    text = f"**{_escaped(describe(result.config))}**: {_escaped(outcome(result, plan))}"
    if rows:
        table = [heads, ["---"] * len(heads), *rows]
        text += "\n\n" + "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in table)
    return text


def _escaped(text: str) -> str:
    """Return text that stands for itself in a table of Markdown; the dashboard takes HTML and formulas in it, too."""
    return re.sub(r"([\\`*_\[\]<>|#$~])", r"\\\1", printable(text))


class Dashboard:
    """The dashboard's pages over a run folder, for a server of one's own; :meth:`serve` is one.

    Args:
        run: the folder.

    Raises:
        PluginError: optuna-dashboard is not installed.
        RunFolderError: there is no such folder.
        AutoftError: no search has begun in it.
    """

    def __init__(self, run: str | Path) -> None:
        try:
            import optuna_dashboard
        except ImportError as error:
            raise PluginError(
                f'the dashboard needs optuna-dashboard, which cannot be imported ({error}); pip install "autoft[dashboard]"'
            ) from error
        # Optuna says at each drawing of which parameters there are few trials.
        warnings.filterwarnings("ignore", module=r"optuna\..*")
        self._make = optuna_dashboard.wsgi
        self._note = optuna_dashboard.save_note
        self._reader = RunReader(run)
        self._lock = threading.Lock()
        self._looked = -math.inf
        self._seen: object = None
        self._pages: Callable[..., Iterable[bytes]]
        self.refresh()

    def refresh(self) -> None:
        """Look into the folder, at most every two seconds, and show what changed there.

        Raises:
            AutoftError: no search has begun in it.
        """
        with self._lock:
            if time.monotonic() - self._looked < LOOKED_EVERY:
                return
            view = self._reader.read()
            going = view.progress.activities if view.progress is not None else []
            seen = (view.state, tuple(map(id, view.results)), tuple(one.trial for one in going))
            if seen != self._seen:
                study = study_of(view, self._reader.run)
                self._note(study, _study_note(view))
                assert view.plan is not None, "a study has a plan"
                for result in view.results:
                    # What save_note needs of a trial; Optuna's own class would ask the sampler for parameters.
                    trial = SimpleNamespace(storage=study._storage, study=study, _trial_id=result.number)
                    self._note(trial, _trial_note(view.plan, result))
                self._pages, self._seen, self._kept = self._make(study._storage), seen, view.results
            self._looked = time.monotonic()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request; those that would change something are refused."""
        if environ["REQUEST_METHOD"] not in READING:
            return _refused(
                start_response, "405 Method Not Allowed", "this dashboard only shows the run; it changes nothing"
            )
        if not self._addressed(environ):
            return _refused(
                start_response, "403 Forbidden", "asked for under a name that this dashboard is not known by"
            )
        if environ.get("PATH_INFO", "").startswith(("/api", "/csv")):
            # Its plots take a second and more of computing; a link to the page itself may come from anywhere.
            if environ.get("HTTP_SEC_FETCH_SITE", "none") not in OWN:
                return _refused(start_response, "403 Forbidden", "asked for by a page that is not this dashboard's")
            try:
                self.refresh()
            except AutoftError as error:
                return _refused(start_response, "503 Service Unavailable", str(error))
        return self._pages(environ, start_response)

    hosts: frozenset[str] | None = None
    """Names under which it may be asked for; None for all. On the loopback only its own: a page from elsewhere whose name
    points here could read along otherwise."""

    def _addressed(self, environ: dict[str, Any]) -> bool:
        if self.hosts is None:
            return True
        return re.sub(r":\d*$", "", environ.get("HTTP_HOST", "")).lower() in self.hosts

    def server(self, host: str = "127.0.0.1", port: int = PORT) -> WSGIServer:
        """Return a server that listens; ``serve_forever`` answers.

        Args:
            host: name or address of this machine.
            port: 0 for one that is free.

        Raises:
            AutoftError: the address cannot be had.
        """
        try:
            server = make_server(host, port, self, server_class=_Server, handler_class=_Handler)
        except (OSError, OverflowError) as error:
            raise AutoftError(
                f"{host}:{port}: cannot be listened at ({error}); give --port another one, as 0 for one that is free"
            ) from error
        if _is_loopback(host):
            self.hosts = frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()})
        return server


def _refused(start_response: Callable[..., Any], status: str, reason: str) -> list[bytes]:
    body = json.dumps({"reason": reason}).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 30
    """Seconds that a connection may stand still: it has a thread of its own meanwhile."""

    def handle(self) -> None:
        """Answer a request; a connection that stands still or breaks off is no news."""
        with suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""
