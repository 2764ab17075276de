"""What tasks over models of transformers share: errors that say what to do, silence while loading, dropout by any name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.contracts import ModelSource, Strategy, Target, TaskContext
from autoft.errors import DataError, ModelError, first_line, is_panic, kind_and_line
from autoft.paths import named_path, package_path, public_name
from autoft.rundir import RunDir, Selection, TrialConfig, read_typed
from autoft.tokenization import checked_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = [
    "DROPOUTS",
    "OFFSET_POSITIONS",
    "check_config",
    "check_fit",
    "check_folder",
    "check_index",
    "dense_folder",
    "embeddings_of_inputs",
    "load_network",
    "load_tokenizer",
    "loading",
    "named_model",
    "named_models",
    "on_hub",
    "public_params",
    "read_weights",
    "set_dropout",
    "trained_by",
    "trained_model",
    "trained_without_dropout",
    "usable_positions",
]

MOST_LAYERS, MOST_LABELS = 10_000, 1_000_000

_LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks?)|(encoder|decoder)_layers")
_LABELS = re.compile("num_labels")
"""What configurations of transformers call how many there are: layers are built, and labels named, before anything else is seen."""

DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "qa_dropout",
    "resid_pdrop",
    "seq_classif_dropout",
)
"""Names that configurations of transformers give to dropout."""


OFFSET_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Types of models that count positions from the number of the padding token on, which takes two of them."""


@contextlib.contextmanager
def loading(source: ModelSource, what: str = "the model") -> Iterator[None]:
    """Load in silence, and turn what libraries raise for missing and damaged files into an error that names the place.

    transformers reports each layer that the checkpoint lacks; the head of a base model is new by intent.

    Args:
        source: what is loaded.
        what: in words, as ``the tokenizer``.

    Raises:
        ModelError: it cannot be loaded.
    """
    import transformers

    check_folder(Path(source.path))
    # Without safetensors at the hub, it would take those of an open pull request, and ask for one.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source.path}: {what} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        # safetensors raises its own error type for a cut or damaged file.
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise ModelError(f"{source.path}: the weights are damaged: {first_line(error)}") from error
        # A wrong type or number in a configuration ends in whatever it leads to there.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] in {"huggingface_hub", "torch", "transformers"}:
            raise ModelError(f"{source.path}: {what} cannot be loaded: {kind_and_line(error)}") from error
        raise
    except BaseException as error:
        # So do the files of a tokenizer, where its code in Rust panics.
        if is_panic(error):
            raise ModelError(f"{source.path}: {what} cannot be loaded: {first_line(error)}") from error
        raise
    finally:
        transformers.logging.set_verbosity(level)


def check_folder(folder: Path) -> None:
    """Raise where transformers would read more than the weights in the folder of a model: of elsewhere, pickled, without end.

    Raises:
        ModelError: its index or configuration names such, a file is a pipe or a device, or there is an adapter that would be put onto
            the weights unseen.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"{path}: is no file, but a pipe or a device")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        check_index(index)
    config = folder / "config.json"
    # Of one that is damaged transformers says so.
    with contextlib.suppress(OSError, ValueError, RecursionError):
        check_config(json.loads(config.read_text(encoding="utf-8")), str(config))
    if (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: holds adapter_config.json beside the weights, an adapter that would be put onto them unseen; merge it "
            "into the weights, or take it out"
        )


def check_config(config: Any, what: str) -> None:
    """Raise where a configuration would have transformers build layers without end, or fetch and run code of the hub for attention.

    Args:
        config: as it is in JSON, its parts among it.
        what: the configuration, for messages.

    Raises:
        ModelError: it would.
    """
    for key, value in config.items() if isinstance(config, Mapping) else ():
        for most, named, kind in ((MOST_LAYERS, _LAYERS, "layers"), (MOST_LABELS, _LABELS, "labels")):
            if isinstance(value, int) and named.fullmatch(key) and value > most:
                raise ModelError(f"{what} is damaged: {key} is {str(value)[:20]}; a model has {most:,} {kind} at most")
        if key.lstrip("_") in {"attn_implementation", "experts_implementation"} and "/" in str(value):
            raise ModelError(
                f"{what}: {key} names a kernel of the hub, {str(value)[:60]!r}, which is code and is not run; take it out"
            )
        check_config(value, what)


def check_index(index: Path) -> None:
    """Raise where a ``model.safetensors.index.json`` names other than safetensors files beside it.

    Raises:
        ModelError: it does, or is damaged.
    """
    try:
        shards = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: is damaged: {first_line(error)}") from None
    wrong = sorted(name for name in shards if Path(name).name != name or not name.endswith(".safetensors"))
    if wrong:
        raise ModelError(f"{index}: names {wrong[0]!r}; weights have to be *.safetensors files beside it")


def on_hub(name: str) -> bool:
    """Say whether what a parameter names is a model of the hub: neither a package nor a path, and no folder here."""
    return not name.startswith(("package://", ".", "/", "~")) and name.count("/") <= 1 and not os.path.isdir(name)


def named_model(name: str, target: Target | None = None) -> ModelSource:
    """Return where a model is that a parameter names.

    Args:
        name: a folder, ``package://module/path``, or a hub id as ``owner/name@revision``.
        target: what the strategy works upon. A model of the hub is then that of the commit which the run keeps for it, if
            the parameter is among :attr:`Strategy.models`; and code that comes with a model runs where the recipe lets it.

    Raises:
        ModelError: it is a folder or a package that holds no model.
    """
    code = target is not None and target.source.trust_remote_code
    if on_hub(name):
        repository, _, revision = name.partition("@")
        kept = target.revisions.get(name) if target is not None else None
        return ModelSource(name, repository, kept or revision or None, trust_remote_code=code)
    if name.startswith("package://"):
        try:
            folder: Path | None = package_path(name)
        except DataError as error:
            raise ModelError(str(error)) from None
    else:
        folder = named_path(name, Path.cwd())
    if folder is None or not (folder / "config.json").is_file():
        raise ModelError(f"{name} holds no config.json; give the folder of a transformers model")
    return ModelSource(name, str(folder), trust_remote_code=code)


def named_models(strategies: Mapping[str, Strategy], params: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return the models that parameters of strategies name, of the hub or not, each with the full name of the first that does.

    Args:
        strategies: by name; they say which of their parameters name models.
        params: full names and values.
    """
    found: dict[str, str] = {}
    for full, value in params:
        owner, _, parameter = full.partition(".")
        if owner in strategies and parameter in strategies[owner].models and isinstance(value, str):
            found.setdefault(value, full)
    return found


def public_params(strategies: Mapping[str, Strategy], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with models as others may read of them: see :func:`autoft.paths.public_name`.

    Args:
        strategies: by name; they say which of their parameters name models.
        params: by full name.
    """
    named = named_models(strategies, params.items())
    return {full: public_name(value, value) if value in named else value for full, value in params.items()}


def embeddings_of_inputs(model: Any) -> torch.nn.Module | None:
    """Return the module that a model names as the one that makes embeddings of its inputs; None where it names none.

    Of an encoder-decoder it is the table that both share, which neither of them may call itself.
    """
    get = getattr(model, "get_input_embeddings", None)
    try:
        found: torch.nn.Module | None = get() if get else None
    except NotImplementedError:
        # What transformers raises of models without any, as many of pictures, where others return None.
        return None
    return found


def dense_folder(run: Path) -> Path | None:
    """Return the folder of the uncompressed weights that a run kept: the chosen ones, else the default's; None without."""
    numbers: list[int] = []
    if (run / "selection.json").is_file():
        chosen = read_typed(run / "selection.json", Selection).trial
        # What was made smaller and trained again began as another trial's model.
        config = RunDir(run).trial(chosen) / "config.json"
        numbers = [chosen, *(read_typed(config, TrialConfig).members if config.is_file() else [])]
    places = [run / "best", *(RunDir(run).trial(number) / "variants" / "none" for number in [*numbers, 0]), run]
    return next((place for place in places if _is_dense(place)), None)


def _is_dense(folder: Path) -> bool:
    """Say whether a folder holds weights that transformers reads; those of a compressor are none."""
    if not (folder / "config.json").is_file() or not [*folder.glob("*.safetensors")]:
        return False
    return bool(read_typed(folder / "autoft.json", dict[str, Any], {}).get("format", "transformers") == "transformers")


def trained_model(name: str, target: Target | None = None) -> ModelSource:
    """Return where a trained model is that a parameter names: of a run, of its ``best`` folder, or as :func:`named_model`.

    Of a run that shipped a compressed model it is the uncompressed one that it kept.

    Raises:
        ModelError: there is no such model.
    """
    folder = Path(name).expanduser().absolute()
    run = folder.parent if folder.name == "best" else folder
    if folder.is_dir() and (run / "plan.json").is_file():
        found = dense_folder(run)
        if found is None:
            raise ModelError(f"{name} kept no uncompressed model; run its search with none among compress")
        return ModelSource(name, str(found), trust_remote_code=target is not None and target.source.trust_remote_code)
    if folder.is_dir() and (folder / "autoft.json").is_file() and not _is_dense(folder):
        raise ModelError(f"{name} is a compressed model; name one that transformers reads, as a run's trials keep it")
    return named_model(name, target)


def trained_by(source: ModelSource) -> str | None:
    """Return the task that a model was trained for, where autoft wrote it; None of other models."""
    task = read_typed(Path(source.path) / "autoft.json", dict[str, Any], {}).get("task")
    return str(task) if task else None


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer of a model; one without a padding token, as decoders have, pads with its end token.

    Raises:
        ModelError: it cannot be loaded, or takes too long for a text.
    """
    from transformers import AutoTokenizer

    with loading(source, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.from_pretrained_kwargs())
    tokenizer = checked_tokenizer(tokenizer, source.path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_network(kind: str, source: ModelSource, context: TaskContext, **settings: Any) -> torch.nn.Module:
    """Return a model with a new head over what a checkpoint holds, in 32 bits unless ``source.load_kwargs`` say otherwise.

    Args:
        kind: name of an auto class of transformers, as ``AutoModelForTokenClassification``.
        source: what is loaded.
        context: its processor says how to pad, and its parameters what ``train.dropout`` is.
        settings: of the configuration, as ``num_labels``.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch
    import transformers

    with loading(source):
        config = transformers.AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
        for name, value in settings.items():
            setattr(config, name, value)
        set_dropout(config, context.params.get("train.dropout"))
        tokenizer = context.processor
        if tokenizer is not None and tokenizer.pad_token_id is not None:
            # Classification over a decoder reads the last token that is not this one. The padding token of a checkpoint
            # whose tokenizer has none, and so pads with its end token, pads nothing.
            pads_with_end = tokenizer.pad_token_id == tokenizer.eos_token_id
            if config.pad_token_id is None or pads_with_end:
                config.pad_token_id = tokenizer.pad_token_id
        model: torch.nn.Module = read_weights(
            getattr(transformers, kind),
            source,
            config=config,
            ignore_mismatched_sizes=True,
            # AdamW over weights of 16 bits loses small steps: bases stored so are trained in 32.
            **{"dtype": torch.float32, **source.load_kwargs},
        )
    return model


def read_weights(kind: Any, source: ModelSource, **settings: Any) -> Any:
    """Return a model of a class of transformers with the weights of a checkpoint.

    Args:
        kind: the class.
        source: what is loaded.
        settings: of ``from_pretrained``, beside those that every source takes.

    Raises:
        ModelError: the files are those of a finished model, and do not fit the model that its configuration describes.
    """
    model, told = kind.from_pretrained(
        source.path, use_safetensors=True, output_loading_info=True, **source.from_pretrained_kwargs(), **settings
    )
    if source.finished:
        check_fit(told, source.path)
    return model


def check_fit(told: Mapping[str, Any], path: str | Path) -> None:
    """Raise where weights are not those of the model that they were read into: what is not there would be chance.

    Args:
        told: what ``from_pretrained`` says of the loading.
        path: of the files.

    Raises:
        ModelError: names the first weights that are missing, of another shape, or of no use.
    """
    wrong = [
        one if isinstance(one, str) else one[0]
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for one in sorted(told[key])
    ]
    if wrong:
        raise ModelError(f"{path}: the weights do not fit the model: {', '.join(wrong[:3])}")


def trained_without_dropout(config: Mapping[str, Any]) -> bool:
    """Say whether a model writes texts and was pretrained without dropout, as Llama, Qwen and SmolLM.

    Args:
        config: its ``config.json``.
    """
    writes = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or ())
    rates = [config[name] for name in DROPOUTS if isinstance(config.get(name), int | float)]
    return writes and bool(rates) and not any(rates)


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model takes at most; None where its configuration sets no limit."""
    positions = config.get("max_position_embeddings")
    if positions is None and "n_embd" in config:
        # GPT-2 and its kin call them so; with T5, which has no n_embd, it limits nothing.
        positions = config.get("n_positions")
    if not isinstance(positions, int):
        return None
    return positions - 2 if config.get("model_type") in OFFSET_POSITIONS else positions


def set_dropout(config: Any, value: Any) -> None:
    """Set every kind of dropout that a configuration of transformers has; None leaves the checkpoint's own.

    Args:
        config: of the model, before it is built.
        value: ``context.params.get("train.dropout")``.
    """
    if value is None:
        return
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, value)
