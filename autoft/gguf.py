"""Base models in GGUF files, as llama.cpp writes them: converted once to the files that transformers trains from.

A GGUF file has quantized weights, which have no gradient. The conversion dequantizes them into a folder of safetensors,
kept in the user's cache, so that everything after it sees a model like any other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from autoft.errors import ModelError, first_line
from autoft.paths import cache_folder

__all__ = ["converted", "drop_unused"]

UNUSED = 30 * 24 * 3600.0
"""Seconds after which a converted model that nobody asked for is deleted; whoever asks later has it converted again."""


def converted(file: Path, cache: Path | None = None) -> Path:
    """Return a folder with the model of a GGUF file as transformers saves it, converted now if it is not there yet.

    Args:
        file: a ``.gguf`` file of an architecture that transformers reads (Llama, Qwen, Mistral, Phi ...).
        cache: where folders are kept; default: ``gguf`` in :func:`~autoft.paths.cache_folder`.

    Raises:
        ModelError: the library to read it is missing, or the file is damaged or of an unknown architecture.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{file}: GGUF files need the library gguf, which is not installed; pip install gguf")
    base = cache or cache_folder() / "gguf"
    with file.open("rb") as content:
        digest = _digest(content)
    folder = base / f"{file.stem}-{digest.hexdigest()[:16]}"
    if (folder / "config.json").is_file():
        os.utime(folder)
        return folder
    drop_unused(base)
    base.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=base, prefix=".partial-"))
    try:
        _convert(file, partial)
        partial.chmod(0o755)
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process was faster; its folder holds the same.
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def drop_unused(base: Path) -> None:
    """Delete converted models that were not asked for within :data:`UNUSED`, and what killed conversions left."""
    for folder in base.glob("*"):
        with suppress(FileNotFoundError):
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_mtime < time.time() - UNUSED:
                shutil.rmtree(folder, ignore_errors=True)


def _convert(file: Path, folder: Path) -> None:
    import torch
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    # The reader meets damaged files with whatever its parsing runs into.
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"{file}: is not a GGUF file that transformers can read, or is damaged ({first_line(error)})"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    # A model that was dequantized while it was loaded is marked as quantized, and would not be saved as it is.
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    if loaded.generation_config is not None:
        model.generation_config = loaded.generation_config
    # Half of the disk; training loads weights in 32 bits again, and these were quantized anyway.
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(content: IO[bytes]) -> Any:
    digest = hashlib.sha256()
    for part in iter(lambda: content.read(1 << 20), b""):
        digest.update(part)
    return digest
