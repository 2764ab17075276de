from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from autoft.testing.models import texts_of, tiny_model

PROGRAM = Path(__file__).with_name("two_processes.py")
SHARDINGS = ["none", "fsdp"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, catalog) -> Path:
    """The folder with what two processes learned together, and one alone."""
    folder = tmp_path_factory.mktemp("ranks")
    for kind, task in {"encoder": "text-classification", "decoder": "summarization"}.items():
        tiny_model(kind, folder / kind, texts_of(catalog.task(task).demo_rows()))
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said = process.communicate(timeout=600)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    return folder


def figures(folder, who, name):
    with np.load(folder / f"{who}-{name}-0.npz") as file:
        return dict(file)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("name", ["full", "lora", "best", "writes", "half", "stopped", "late"])
def test_two_processes_learn_what_one_learns(trained, sharding, name):
    one, two = figures(trained, "alone", name), figures(trained, sharding, name)
    assert one.keys() == two.keys()
    np.testing.assert_array_equal(two["ends"], one["ends"])
    near = 0.02 if name == "half" else 1e-3
    np.testing.assert_allclose(two["curve"], one["curve"], rtol=near)
    np.testing.assert_allclose(two["logits"], one["logits"], rtol=near)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_weights_are_those_of_one_process(trained, sharding):
    one, two = figures(trained, "alone", "lora"), figures(trained, sharding, "lora")
    for name, weights in one.items():
        # AdamW takes a whole step, of 1e-3, where a gradient is nothing but rounding.
        np.testing.assert_allclose(two[name], weights, atol=3e-4, err_msg=name)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_best_checkpoint_is_put_back_whole(trained, sharding):
    best = figures(trained, sharding, "best")
    samples, _, validated = best["curve"][best["curve"][:, 2].argmin()]
    assert samples == best["ends"][0] < best["curve"][-1, 0]
    np.testing.assert_allclose(best["logits"], validated, rtol=1e-5)


def test_memory_that_runs_out_in_one_process_cuts_the_batches_of_both(trained):
    one, two = figures(trained, "none", "stopped"), figures(trained, "none", "hungry")
    assert two["ends"][1] == 4
    np.testing.assert_allclose(two["curve"][: len(one["curve"])], one["curve"], rtol=1e-5)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_loss_that_is_no_number_is_told_by_both(trained, sharding):
    for rank in (0, 1):
        assert "the loss became nan" in (trained / f"{sharding}-infinite-{rank}.txt").read_text()
