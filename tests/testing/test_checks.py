"""How checks are run: records, expected failures, pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import SkipTest

import pytest

from autoft.errors import PluginError
from autoft.strategies.augmentation import RandomSwap
from autoft.strategies.magnitude_pruning import MagnitudePruning
from autoft.testing import CheckFailed, check_plugin, checks_of, parametrize_with_checks, run_checks


class Wordy(RandomSwap):
    """A strategy that fails one check."""

    name = "wordy"
    summary = "two\nlines"


def test_records_say_what_came_of_each_check():
    results = {result.check: result for result in run_checks([Wordy()])}
    assert results["check_names"].outcome == "failed"
    assert results["check_names"].reason.startswith("the summary has to be one line")
    assert results["check_augmenter_keeps_the_row"].outcome == "passed"
    assert results["check_import_is_light"].outcome in {"passed", "skipped"}
    assert all(result.subject == "wordy" and result.seconds >= 0 for result in results.values())
    assert [result.reason for result in results.values() if result.outcome == "passed"] == [""] * sum(
        result.outcome == "passed" for result in results.values()
    )


def test_an_expected_failure_fails_as_expected_and_one_that_passes_has_failed():
    why = {"check_names": "the summary is a poem", "check_augmenter_changes_texts": "never"}
    results = {result.check: result for result in run_checks([Wordy()], expected_failures=why)}
    assert (results["check_names"].outcome, results["check_names"].reason) == ("failed as expected", why["check_names"])
    passed = results["check_augmenter_changes_texts"]
    assert passed.outcome == "failed"
    assert passed.reason == "passes, though it is expected to fail: never"


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"check_name": "why"}, "did you mean 'check_names'"),
        ({"check_names": " "}, "check_names is expected to fail; say why"),
    ],
)
def test_expected_failures_need_a_name_and_a_reason(expected, message):
    with pytest.raises(ValueError, match=message):
        parametrize_with_checks([Wordy()], expected_failures=expected)
    with pytest.raises(ValueError, match=message):
        list(run_checks([Wordy()], expected_failures=expected))


def test_an_expected_failure_of_what_is_not_installed_here_is_left_out():
    why = {"check_names": "a poem", "check_refuses_with_a_sentence[a-kind-of-tomorrow]": "never seen"}
    results = list(run_checks([Wordy()], expected_failures=why))
    assert [result.check for result in results if result.outcome == "failed as expected"] == ["check_names"]
    assert not [result for result in results if result.outcome == "failed"]


def test_checks_are_data_with_names_and_summaries():
    checks = checks_of([RandomSwap(), MagnitudePruning()])
    names = [(check.subject, check.name) for check in checks]
    assert len(set(names)) == len(names)
    assert ("magnitude-pruning", "check_compressor_keeps_predictions[decoder]") in names
    assert all(check.summary.endswith((".", "model.")) for check in checks)


def test_what_could_not_be_prepared_fails_once_and_is_skipped_after(tmp_path):
    from autoft.testing.probe import Praise

    class Unloadable(Praise):
        def load_model(self, source, context):
            raise RuntimeError("no such weights")

    (tmp_path / "config.json").write_text("{}")
    checks = {check.name: check for check in checks_of([Unloadable()], model=tmp_path)}
    with pytest.raises((OSError, ValueError)):
        checks["check_model_loads"]()
    with pytest.raises(SkipTest, match="needs context, which failed: "):
        checks["check_encode_is_pure"]()


PYTEST_FILE = """
from autoft.strategies.augmentation import RandomSwap
from autoft.testing import parametrize_with_checks

class Wordy(RandomSwap):
    name = "wordy"
    summary = "two\\nlines"

@parametrize_with_checks([Wordy()])
def test_plain(check):
    check()

@parametrize_with_checks([Wordy()], expected_failures={"check_names": "a poem"})
def test_expected(check):
    check()

@parametrize_with_checks([Wordy()], expected_failures={"check_augmenter_changes_texts": "never"})
def test_wrongly_expected(check):
    check()
"""


def test_pytest_runs_each_check_by_itself(tmp_path):
    (tmp_path / "test_wordy.py").write_text(PYTEST_FILE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfx",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            str(tmp_path),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    told = {line.split(" ")[1].rpartition("::")[2]: line.split(" ")[0] for line in lines if " test_wordy.py::" in line}
    assert told == {
        "test_plain[wordy-check_names]": "FAILED",
        "test_expected[wordy-check_names]": "XFAIL",
        "test_wrongly_expected[wordy-check_names]": "FAILED",
        "test_wrongly_expected[wordy-check_augmenter_changes_texts]": "FAILED",
    }, done.stdout + done.stderr
    assert "3 failed, 17 passed, 1 xfailed" in lines[-1]


def test_a_plugin_is_checked_by_any_of_its_names():
    by_strategy = list(check_plugin("random-swap"))
    assert {result.subject for result in by_strategy} == {"random-swap"}
    assert {result.outcome for result in by_strategy} == {"passed"}
    with pytest.raises(PluginError, match="Did you mean 'random-swap'"):
        check_plugin("random-swab")


def test_a_check_that_fails_is_an_assertion():
    (check,) = [check for check in checks_of([Wordy()]) if check.name == "check_names"]
    with pytest.raises(CheckFailed, match="the summary has to be one line"):
        check()
    assert issubclass(CheckFailed, AssertionError)
