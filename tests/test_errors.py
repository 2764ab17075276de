from __future__ import annotations

import errno

import pytest

from autoft.errors import MANY, Fault, RecipeError, RunFolderError, first_line, unknown_name


def test_few_names_are_all_listed():
    assert unknown_name("pipeline", "lorra", ["lora", "full"]) == (
        "unknown pipeline 'lorra'. Did you mean 'lora'? Known: full, lora."
    )


def test_of_many_names_only_the_nearest_are_listed():
    names = [f"nf4+method-{number}" for number in range(MANY)] + ["lora"]
    text = unknown_name("pipeline", "lorra", names)
    assert text.startswith(f"unknown pipeline 'lorra'. Did you mean 'lora'? The nearest of {MANY + 1}: lora, ")
    assert len(text) < 250


def test_the_first_line_of_an_error_says_something_whatever_it_holds():
    errors = [ValueError("\n a shape:\n  (2, 3)"), NotImplementedError(), OSError(2, "No such file")]
    assert [first_line(error) for error in errors] == ["a shape", "NotImplementedError", "[Errno 2] No such file"]


def test_a_value_without_end_is_told_by_its_begin():
    long = RecipeError([Fault("model", f"no such folder: {'x' * 5000}"), Fault("name", "y" * 300)])
    assert "model: no such folder: xxxxx" in str(long)
    assert len(str(long)) < 500
    assert "y" * 300 in str(long)


def test_of_faults_without_number_the_first_are_told_and_the_others_counted():
    told = str(RecipeError([Fault(f"key{i}", "is unknown") for i in range(MANY + 3)])).splitlines()
    assert told[0] == f"recipe: {MANY + 3} faults"
    assert told[MANY] == f"  key{MANY - 1}: is unknown"
    assert told[MANY + 1 :] == ["  and 3 more"]


def test_a_trial_that_finds_the_disk_full_is_no_failed_one(tmp_path):
    """What it left would count as a trial, and never be done again."""
    from autoft.rundir import TrialConfig, TrialResult
    from autoft.trial import ended_by

    config = TrialConfig(number=3, kind="search", model="m", pipeline="full", params={}, seed=0)
    result = TrialResult(number=3, state="failed", config=config)
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("cannot be saved") from error
    except ValueError as error:
        wrapped = error
    library = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (OSError(errno.EDQUOT, "Quota"), library, wrapped):
        with pytest.raises(RunFolderError, match=r"trial 3: the disk is full .*run the same command again"):
            ended_by(error, result, tmp_path / "3")
        assert not (tmp_path / "3").exists()
    ended_by(OSError(errno.EACCES, "no"), result, tmp_path / "3")
    assert (result.state, (tmp_path / "3" / "error.txt").is_file()) == ("failed", True)
