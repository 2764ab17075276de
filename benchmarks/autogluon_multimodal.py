"""One fit of AutoGluon's MultiModalPredictor, by an interpreter that has it: `search_speed.py --autogluon PYTHON` runs this.

Reads a folder with `train.jsonl`, `validation.jsonl` and `test.jsonl` (`text`, `label`), and prints one line of JSON:
accuracy on validation and test, and the seconds that the fit took. It knows nothing of autoft.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas
import torch
from autogluon.multimodal import MultiModalPredictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True, help="folder of the backbone")
    parser.add_argument("--seconds", type=int, required=True, help="time limit of the fit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train, validation, test = (
        pandas.read_json(given.folder / f"{split}.jsonl", lines=True, dtype=False)
        for split in ("train", "validation", "test")
    )
    problem = "binary" if train["label"].nunique() == 2 else "multiclass"
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        predictor = MultiModalPredictor(
            label="label", problem_type=problem, eval_metric="accuracy", path=f"{folder}/model", verbosity=1
        )
        predictor.fit(
            train,
            tuning_data=validation,
            time_limit=given.seconds,
            seed=given.seed,
            hyperparameters={
                "model.names": ["hf_text"],
                "model.hf_text.checkpoint_name": given.model,
                "env.num_gpus": 0,
                "env.num_workers": 0,
                "env.num_workers_inference": 0,
            },
        )
        seconds = time.monotonic() - begin
        figures = {
            name: float((predictor.predict(rows) == rows["label"]).mean())
            for name, rows in (("validation", validation), ("test", test))
        }
    print(json.dumps({**figures, "seconds": seconds}))


if __name__ == "__main__":
    main()
