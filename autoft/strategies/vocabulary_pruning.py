"""Vocabulary pruning: embedding rows of tokens that the data never uses go, and the tokenizer with them.

In a small encoder the embedding table is most of the file: of MiniLM-L6 it holds 11.7 of 22.7 million weights.
"""

from __future__ import annotations

import copy
import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Compressor, Refusal, Row, State, Target
from autoft.errors import ModelError
from autoft.pretrained import OFFSET_POSITIONS
from autoft.space import Float, Int, SearchSpace
from autoft.strategies.recovery import RECOVERY, recover
from autoft.tokenization import checked_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["VocabularyPruning", "common_tokens", "kept_tokens", "smaller_tokenizer"]

ARCHITECTURES = frozenset({"sequence-classification", "token-classification", "question-answering"})
"""Those whose models read tokens and write none."""

ROWS = 1000
"""That are encoded at once."""

FREQUENT_SCRIPT = 1e-3
"""A script belongs to the data where so large a share of its characters are of it."""


class VocabularyPruning(Compressor):
    """Drops the tokens that the training rows do not use, or use less than ``min_count`` times.

    With a ``min_count`` of 1 every training row is cut into the same tokens as before. What later texts have beyond
    that is written in the tokens that are left: all single characters of the scripts that the data are written in stay,
    for WordPiece at the beginning and inside of words, and for byte-level BPE all bytes. So many of the most common
    tokens, which tokenizers give the lowest numbers, stay beside that of a new text at most the share ``unseen`` of its
    tokens is expected to be dropped ones; that share is estimated by leaving each training row out (Good 1953, "The
    population frequencies of species and the estimation of population parameters"). As in Abdaoui et al. 2020
    ("Load What You Need", arXiv:2010.05609), with the choice made by the task's own rows and not by a language.
    """

    name: ClassVar[str] = "vocabulary-pruning"
    summary: ClassVar[str] = "drops tokens that the training rows do not use, from embeddings and tokenizer"
    space: ClassVar[SearchSpace] = {
        "min_count": Int(1, 100, default=1, log=True),
        "unseen": Float(0.0, 1.0, default=0.005),
        **RECOVERY,
        "epochs": Int(0, 100, 0),
    }
    yields: ClassVar[State] = "dense"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "reshaped", "factorized"})
    calibration_rows: ClassVar[int | None] = None

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Say whether there are epochs to recover in: a model has not learned to read rare words in pieces."""
        return int(params["epochs"]) > 0

    def check(self, target: Target) -> Refusal | None:
        """Refuse models that write tokens, and those that read something else."""
        card = target.task.card
        if card.architecture not in ARCHITECTURES:
            return Refusal(
                f"{self.name}: a model of {card.name} may have to write any token; it is for tasks that only read texts "
                f"({', '.join(sorted(ARCHITECTURES))})"
            )
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the model with fewer embeddings, without the tokenizer that goes with it: see :meth:`transform`."""
        return self.transform(model, target, rows, params)[0]

    def transform(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Target]:
        """Return the model with fewer embeddings, and the target with the smaller tokenizer.

        Raises:
            ModelError: the processor is no tokenizer of the library tokenizers, or positions of the model depend on the
                number of a token that would change.
        """
        tokenizer = target.context.processor
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelError(
                f"{self.name}: {type(tokenizer).__name__} of {target.source.name} is no tokenizer with a tokenizer.json"
            )
        task, context = target.task, target.context
        # Without targets, as a prediction reads: a training may leave windows of long texts out.
        given = [{c.role: row[c.role] for c in task.card.inputs if c.role in row} for row in rows]
        texts = [
            Counter(_numbers(feature["input_ids"]))
            for start in range(0, len(given), ROWS)
            for feature in task.encode(given[start : start + ROWS], context)
        ]
        counts: Counter[int] = Counter()
        for text in texts:
            counts.update(text)
        least = int(params["min_count"])
        used = {token for token, count in counts.items() if count >= least}
        common = common_tokens(texts, least, float(params["unseen"]))
        used.update(number for number in range(common) if _is_filled(tokenizer, number))
        occurring = tokenizer.convert_ids_to_tokens(sorted(counts))
        kept = kept_tokens(json.loads(tokenizer.backend_tokenizer.to_str()), used, occurring)
        moved = {old: new for new, old in enumerate(kept)}
        if (
            target.config.get("model_type") in OFFSET_POSITIONS
            and moved[tokenizer.pad_token_id] != tokenizer.pad_token_id
        ):
            raise ModelError(
                f"{self.name}: positions of {target.source.name} are counted from the number of its padding token, which "
                "would change"
            )
        smaller = smaller_tokenizer(tokenizer, kept)
        pruned = _with_rows(copy.deepcopy(model), kept)
        for config in (pruned.config, getattr(pruned, "generation_config", None)):
            if config is not None:
                _renumber(config, moved)
        pruned.config.vocab_size = len(kept)
        retargeted = replace(target, context=replace(target.context, processor=smaller))
        recover(pruned, retargeted, params)
        return pruned.eval(), retargeted


def common_tokens(texts: Sequence[Counter[int]], min_count: int, unseen: float) -> int:
    """Return how many of the most common tokens have to stay for new texts to be read.

    A text that is left out has tokens which the others use less than ``min_count`` times; their share of all tokens,
    over all texts, is what dropping costs a new text. With a ``min_count`` of 1 it is the estimate of Good and Turing:
    tokens that are in one text alone, by all tokens.

    Args:
        texts: how often each token is in each text, by its number; low numbers are common tokens.
        min_count: tokens that are used as often stay anyway.
        unseen: largest share of the tokens of a new text that may be dropped ones.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text)
    lost: Counter[int] = Counter()
    for text in texts:
        lost.update({token: count for token, count in text.items() if counts[token] - count < min_count})
    room = unseen * counts.total()
    for token in sorted(lost, reverse=True):
        room -= lost[token]
        if room < 0:
            return token + 1
    return 0


def _is_filled(tokenizer: Any, number: int) -> bool:
    """Say whether a token was ever used: BERT's ``[unused0]`` are places without one."""
    return "unused" not in str(tokenizer.convert_ids_to_tokens(number)).lower()


def kept_tokens(definition: Mapping[str, Any], used: set[int], texts: Iterable[str] = ()) -> list[int]:
    """Return the tokens that a smaller tokenizer has to keep, by their numbers, in order.

    Args:
        definition: content of ``tokenizer.json``.
        used: numbers of the tokens that are wanted.
        texts: tokens as they occur in the data, whose scripts stay readable character by character.
    """
    model = definition["model"]
    vocabulary = _vocabulary(model)
    kept = set(used) | {token["id"] for token in definition.get("added_tokens", ())}
    unknown = model.get("unk_token", model.get("unk_id"))
    kept |= {vocabulary[unknown]} if isinstance(unknown, str) and unknown in vocabulary else set()
    kept |= {unknown} if isinstance(unknown, int) else set()
    prefix = model.get("continuing_subword_prefix") or ""
    scripts = _scripts(texts, prefix)
    every_byte = model["type"] == "BPE"
    for token, number in vocabulary.items():
        piece = token.removeprefix(prefix) if prefix and token != prefix else token
        single = len(piece) == 1 and (every_byte or piece.isascii() or piece == "▁" or _script(piece) in scripts)
        # The second are the bytes of tokenizers that fall back on them.
        if single or (token.startswith("<0x") and token.endswith(">")):
            kept.add(number)
    if model["type"] == "BPE":
        _close_over_merges(kept, model, vocabulary)
    return sorted(kept)


def smaller_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """Return the tokenizer with these tokens alone, numbered from 0 on in their order.

    Args:
        tokenizer: of transformers, with a ``backend_tokenizer``; it stays as it is.
        kept: numbers of tokens, as :func:`kept_tokens` returns them.
    """
    from transformers import AutoTokenizer

    moved = {old: new for new, old in enumerate(kept)}
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model = definition["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = moved[model["unk_id"]]
    else:
        model["vocab"] = {token: moved[number] for token, number in model["vocab"].items() if number in moved}
    if model["type"] == "BPE":
        known = set(model["vocab"])
        model["merges"] = [pair for pair in model["merges"] if _merged(pair) in known and set(_parts(pair)) <= known]
    for token in definition.get("added_tokens", ()):
        token["id"] = moved[token["id"]]
    _renumber_processor(definition.get("post_processor"), moved)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name not in {"tokenizer_config.json", "chat_template.jinja"}:
                path.unlink()
        settings = Path(folder) / "tokenizer_config.json"
        known_settings = json.loads(settings.read_text(encoding="utf-8"))
        known_settings.pop("added_tokens_decoder", None)
        settings.write_text(json.dumps(known_settings), encoding="utf-8")
        (Path(folder) / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
        smaller = checked_tokenizer(AutoTokenizer.from_pretrained(folder), tokenizer.name_or_path)
    smaller.model_input_names = list(tokenizer.model_input_names)
    for side in ("truncation_side", "padding_side"):
        setattr(smaller, side, getattr(tokenizer, side))
    if len(smaller) != len(kept):
        raise ModelError(
            f"{type(tokenizer).__name__} cannot be made smaller: it reads {len(smaller)} tokens where {len(kept)} are written"
        )
    return smaller


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    if model["type"] in {"WordPiece", "BPE", "WordLevel"}:
        return dict(model["vocab"])
    raise ModelError(f"vocabulary-pruning: a tokenizer of type {model['type']} is not known")


def _scripts(texts: Iterable[str], prefix: str) -> set[str]:
    counts = Counter(_script(character) for text in texts for character in text.removeprefix(prefix))
    return {script for script, count in counts.items() if count >= FREQUENT_SCRIPT * counts.total()}


def _script(character: str) -> str:
    """Return the first word of a character's name, which is its script: LATIN, CYRILLIC, CJK ..."""
    return unicodedata.name(character, "").partition(" ")[0]


def _numbers(value: Any) -> Iterable[int]:
    if isinstance(value, int):
        yield value
        return
    for part in value:
        yield from _numbers(part)


def _parts(pair: Any) -> tuple[str, str]:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right


def _merged(pair: Any) -> str:
    return "".join(_parts(pair))


def _close_over_merges(kept: set[int], model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    """Add the tokens that kept ones are merged from."""
    tokens = {number: token for token, number in vocabulary.items()}
    origins: dict[str, list[tuple[str, str]]] = {}
    for pair in model["merges"]:
        origins.setdefault(_merged(pair), []).append(_parts(pair))
    waiting = [tokens[number] for number in kept if number in tokens]
    while waiting:
        for parts in origins.get(waiting.pop(), ()):
            for part in parts:
                number = vocabulary.get(part)
                if number is not None and number not in kept:
                    kept.add(number)
                    waiting.append(part)


def _renumber_processor(processor: Any, moved: Mapping[int, int]) -> None:
    """Give the tokens that a post-processor adds their new numbers, in each of the forms that tokenizers knows."""
    if not isinstance(processor, dict):
        return
    for part in processor.get("processors", ()):
        _renumber_processor(part, moved)
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [moved[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            text, number = processor[name]
            processor[name] = [text, moved[number]]


def _with_rows(model: torch.nn.Module, kept: Sequence[int]) -> Any:
    """Return the model with these rows of its input embeddings alone."""
    import torch

    changed: Any = model
    table = changed.get_input_embeddings()
    padding = table.padding_idx
    smaller = torch.nn.Embedding(
        len(kept),
        table.embedding_dim,
        padding_idx=list(kept).index(padding) if padding is not None and padding in kept else None,
        device=table.weight.device,
        dtype=table.weight.dtype,
    )
    with torch.no_grad():
        smaller.weight.copy_(table.weight[torch.tensor(kept, device=table.weight.device)])
    changed.set_input_embeddings(smaller)
    return changed


def _renumber(config: Any, moved: Mapping[int, int]) -> None:
    for name in [name for name in config.to_dict() if name.endswith("_token_id")]:
        value = getattr(config, name, None)
        if isinstance(value, int) and value in moved:
            setattr(config, name, moved[value])
        elif isinstance(value, list):
            setattr(config, name, [moved[one] for one in value if one in moved])
