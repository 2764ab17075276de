"""4-bit weights that calibration rows decide on, by the gptqmodel library: GPTQ and AWQ, for text generation on GPUs."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from autoft.contracts import Refusal, Row, Target
from autoft.errors import ModelError
from autoft.space import Categorical, SearchSpace
from autoft.strategies.compatibility import body_of
from autoft.strategies.weight_quantization import Layers, TransformersQuantized, block_layers, room

__all__ = ["Awq", "Gptq", "QuantizedFiles", "quantize_files"]

SHORTEST = 11
"""Tokens of the shortest text that gptqmodel calibrates with."""


@dataclass(frozen=True)
class QuantizedFiles:
    """A quantized model, as files in a folder that goes when this does."""

    folder: tempfile.TemporaryDirectory[str]


class Gptq(TransformersQuantized):
    """4-bit weights in groups, each column's rounding error made up for by the columns that are still to be rounded.

    Method: GPTQ (Frantar et al. 2022, arXiv:2210.17323), from 128 rows as there. transformers loads the files with
    gptqmodel and optimum installed.
    """

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "4-bit linear layers from calibration rows, for text generation on GPUs (gptqmodel)"
    library: ClassVar[str] = "gptqmodel"
    calibration_rows: ClassVar[int | None] = 128
    space: ClassVar[SearchSpace] = {"group_size": Categorical((32, 64, 128), 128)}
    outputs: ClassVar[int] = 1
    """What the outputs of each layer have to divide by."""

    def check(self, target: Target) -> Refusal | None:
        """Refuse all but decoders on NVIDIA GPUs, and where the libraries are missing."""
        if body_of(target.config) != "decoder":
            return Refusal(f"{self.name}: {self.library} quantizes decoders that write texts, as Llama; use bnb-nf4")
        if "cuda" not in (target.hardware.device, target.context.device):
            return Refusal(f"{self.name}: its files are for the kernels of NVIDIA GPUs; use bnb-nf4")
        return super().check(target)

    def missing(self) -> str | None:
        """Return what has to be installed to quantize and to load, or None."""
        if importlib.util.find_spec("optimum") is None:
            return f"{self.name}: needs optimum, which is not installed; pip install autoft[{self.library}]"
        return super().missing()

    def quantization_config(self, layers: Layers, target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of gptqmodel's ``QuantizeConfig``."""
        return {"bits": 4, "group_size": int(params.get("group_size", 128)), "method": self.name}

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> QuantizedFiles:
        """Return the files of the quantized model.

        Raises:
            ModelError: a layer does not divide into groups, the rows are too short, or the library failed.
        """
        import torch

        size = int(params.get("group_size", 128))
        modules = [model.get_submodule(name) for name in block_layers(model).quantized]
        if any(one.in_features % size or one.out_features % self.outputs for one in modules) or not modules:
            raise ModelError(
                f"{self.name}: layers of {type(model).__name__} do not divide into groups of {size}; use bnb-nf4"
            )
        features = target.task.encode(rows, target.context)
        segments = _segments([list(map(int, one["input_ids"])) for one in features], target.context.max_length)
        if not segments:
            raise ModelError(f"{self.name}: rows of at least {SHORTEST} tokens in all are needed to calibrate with")
        device = target.context.device
        work = tempfile.TemporaryDirectory(dir=room(target))
        folder = Path(work.name)
        # The kernels of GPUs compute in half precision.
        dtype = torch.float32 if device == "cpu" else torch.float16
        copy.deepcopy(model).to(dtype).save_pretrained(folder / "dense")
        target.context.processor.save_pretrained(folder / "dense")
        job = {
            "config": self.quantization_config(Layers((), (), ()), target, params),
            "device": device,
            "segments": segments,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # In a process of its own: the library changes transformers as it is imported, prints much, and writes a log
        # into the working directory. On machines with two cores it asks for more threads than it makes (7.6).
        program = "import sys; from autoft.strategies.gptq import quantize_files; quantize_files(sys.argv[1])"
        ran = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            cwd=folder,
            env={"GPTQMODEL_CPU_WORKERS": "2", **os.environ},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if ran.returncode != 0:
            lines = [line for line in ran.stderr.splitlines() if line.strip()]
            raise ModelError(f"{self.name}: gptqmodel failed: {lines[-1] if lines else ran.returncode}")
        shutil.rmtree(folder / "dense")
        return QuantizedFiles(work)

    def save(self, model: QuantizedFiles, folder: Path) -> None:
        """Write what transformers reads; the library's own notes are left out."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in (Path(model.folder.name) / "quantized").iterdir():
            if path.name in {"config.json", "generation_config.json"} or "safetensors" in path.name:
                shutil.copy2(path, folder)


class Awq(Gptq):
    """4-bit weights in groups, after channels with large activations were made larger, and others smaller.

    Method: AWQ (Lin et al. 2023, arXiv:2306.00978), with its search of scales and of clipping. transformers loads the
    files with gptqmodel installed.
    """

    name: ClassVar[str] = "awq"
    summary: ClassVar[str] = "4-bit linear layers, scaled by what calibration rows activate (gptqmodel)"
    outputs: ClassVar[int] = 64

    def quantization_config(self, layers: Layers, target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of gptqmodel's ``QuantizeConfig``."""
        # With zero points, as the paper's own code has them.
        return {**super().quantization_config(layers, target, params), "format": "gemm", "sym": False}


def _segments(rows: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Return all tokens, one row behind the other as in pretraining, in segments of a length and a rest."""
    joined = [token for row in rows for token in row]
    segments = [joined[start : start + length] for start in range(0, len(joined), length)]
    return [segment for segment in segments if len(segment) >= SHORTEST]


def quantize_files(folder: str) -> None:
    """Quantize the model in ``dense`` as ``job.json`` says, and write it into ``quantized``, all inside of the folder."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    place = Path(folder)
    job = json.loads((place / "job.json").read_text(encoding="utf-8"))
    config = QuantizeConfig(**job["config"], offload_to_disk=False)
    model = GPTQModel.load(str(place / "dense"), config, device=job["device"])
    # Left to itself it looks for AWQ's kernel of CUDA everywhere.
    plain = job["device"] == "cpu" and job["config"]["method"] == "awq"
    model.quantize(
        [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["segments"]],
        batch_size=1,
        backend=BACKEND.AWQ_TORCH if plain else BACKEND.AUTO,
    )
    model.save(str(place / "quantized"))
