"""Prompt tuning, P-tuning and prefix tuning: trained vectors that a frozen model reads in front of every input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Adapter, Reach, Refusal, State, Target
from autoft.errors import ModelError, first_line
from autoft.paths import public_name
from autoft.rundir import read_json
from autoft.space import Categorical, Float, Int, SearchSpace
from autoft.strategies.compatibility import incompatible
from autoft.strategies.head_only import find_head
from autoft.strategies.peft_adapter import (
    ADAPTER,
    copy_learned,
    is_quantized,
    savable,
    take_out_saved,
    verify_saved,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel

__all__ = ["PTuning", "PrefixTuning", "PromptTuning", "VirtualTokens"]

FOLDER = "adapter"
"""Where the adapter's files are, inside of the base model's: in one folder transformers would take them for its own."""

_HEADS = {
    "question-answering": "QUESTION_ANS",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
_WRITERS = frozenset({"causal-lm", "conditional-generation", "seq2seq", "seq2seq-lm"})
_HEAD_RATE = 3e-3
"""Of a new head over a frozen body, as ``head-only`` has it by default."""
_LEAST_ROOM = 8


class VirtualTokens(Adapter):
    """Train vectors in front of the input, by PEFT, and the task's head in full; the body stays frozen.

    What is learned cannot become part of the body's weights. It is kept beside them: ``save`` writes the base with the
    trained head as a transformers model, and in the folder ``adapter`` what PEFT reads
    (``PeftModel.from_pretrained(model, "adapter")``). PEFT's classes are used as they are, so that these answer the same;
    but outputs at the places of virtual tokens, of which no task knows, are left out, and rows of unlike length are
    written apart, for padding between virtual tokens and text changes the answer.

    Attributes:
        tuner: name of the configuration's class in ``peft``.
        inside: the vectors are keys and values of each layer, and take no place in its input.
    """

    reach: ClassVar[Reach] = "head"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "quantized"})
    merges: ClassVar[bool] = False
    tuner: ClassVar[str]
    inside: ClassVar[bool] = False

    def positions(self, params: Mapping[str, Any]) -> int:
        """Return the number of virtual tokens."""
        return int(params["tokens"])

    def check(self, target: Target) -> Refusal | None:
        """Refuse what PEFT has no model for, what it computes wrongly, and what was tried and does not work."""
        architecture, config = target.task.card.architecture, target.config
        if architecture not in _WRITERS and architecture not in _HEADS:
            return Refusal(f"{self.name}: PEFT puts no virtual tokens in front of a {architecture} model; use lora")
        decodes = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or ())
        if architecture in _WRITERS and not decodes and not config.get("is_encoder_decoder"):
            return Refusal(
                f"{self.name}: PEFT puts no virtual tokens in front of an encoder that gets a new decoder; use lora"
            )
        if not self.inside and decodes and architecture == "sequence-classification":
            # It looks for the last token that is no padding among ids, which vectors have not: it takes the padding.
            return Refusal(
                f"{self.name}: a {config.get('model_type')} model classifies at its last token, which transformers does "
                "not find behind virtual tokens; use prefix-tuning or lora"
            )
        if self.inside and target.context.params.get("train.gradient_checkpointing"):
            return Refusal(
                f"{self.name}: transformers drops keys and values that are given with gradient checkpointing; pin "
                "train.gradient_checkpointing to false"
            )
        if target.context.max_length < _LEAST_ROOM:
            return Refusal(
                f"{self.name}: virtual tokens leave {target.context.max_length} positions for the text; lower "
                f"{self.name}.tokens"
            )
        reason = incompatible(self.name, target)
        return Refusal(f"{self.name}: {reason}") if reason else None

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of PEFT's configuration that are this method's own."""
        return {}

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return a ``PeftModel`` over the model: the virtual tokens and the head trainable, the rest frozen.

        Raises:
            ModelError: PEFT has no such model, or would train other modules than the head, or the model does not read
                the virtual tokens.
        """
        import peft

        head = find_head(model)
        saved = savable(model, head)
        config = getattr(peft, self.tuner)(
            num_virtual_tokens=params["tokens"],
            task_type=self._task_type(model, target),
            modules_to_save=list(saved) or None,
            **_sizes(model, self.inside),
            **self.options(params),
        )
        adapted = self._over(model, config, target)
        verify_saved(adapted, saved, target, self.name)
        for name, parameter in adapted.get_base_model().named_parameters():
            if name in head.parameters:
                parameter.requires_grad_(True)
        self._verify_read(adapted, target)
        attached: torch.nn.Module = adapted
        return attached

    def parameter_groups(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Return the head, with no more than what a new head over frozen features takes."""
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        head = [weight for name, weight in trained if "prompt_encoder" not in name]
        return [{"params": head, "lr": min(learning_rate, _HEAD_RATE)}] if head else None

    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return the virtual tokens over a dense base with the trained head, frozen and in evaluation mode.

        What only trained them, as the network of P-tuning, is left out. The given model is used up.

        Raises:
            ModelError: the model's own base is quantized and ``base`` is None, or the base does not fit.
        """
        import torch

        trained: PeftModel = model
        learned = trained.get_prompt_embedding_to_save(ADAPTER)
        if base is None and is_quantized(trained):
            raise ModelError(
                f"{self.name}: the base of {target.source.name} is quantized; what was learned is kept over a dense base"
            )
        if base is not None:
            fresh = self._over(base(), _config_of(trained), target)
            copy_learned(trained, fresh, target, self.name)
            trained = fresh
        config = _config_of(trained)
        config.inference_mode = True
        take_out_saved(trained)
        kept = self._over(trained.get_base_model().requires_grad_(False), config, target)
        with torch.no_grad():
            kept.prompt_encoder[ADAPTER].embedding.weight.copy_(learned)
        merged: torch.nn.Module = kept.eval()
        return merged

    def save(self, model: Any, folder: Path) -> None:
        """Write the base with its head, and beside it the virtual tokens as PEFT does."""
        from peft.utils import ModulesToSaveWrapper

        base = model.get_base_model()
        wrapped = {name: module for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)}
        try:
            take_out_saved(model)
            base.save_pretrained(folder)
        finally:
            for name, module in wrapped.items():
                base.set_submodule(name, module)
        # It would ask the hub for the base's vocabulary, which is as it was.
        model.save_pretrained(folder / FOLDER, save_embedding_layers=False)

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model that :meth:`save` wrote.

        Raises:
            ModelError: PEFT would read other files, pickled ones or those of another model, than were written.
        """
        import peft
        from peft import PeftModel
        from peft.utils import SAFETENSORS_WEIGHTS_NAME

        from autoft.strategies.prompted_models import hide_virtual_tokens

        saved = folder / FOLDER
        # Of other kinds are such that load what the file names, of the hub too.
        kind = str(getattr(peft, self.tuner)(num_virtual_tokens=1, task_type="CAUSAL_LM").peft_type.value)
        told = read_json(saved / "adapter_config.json")
        if (
            not isinstance(told, dict)
            or told.get("peft_type") != kind
            or not (saved / SAFETENSORS_WEIGHTS_NAME).is_file()
        ):
            raise ModelError(
                f"{saved}: is no adapter of {self.name} in {SAFETENSORS_WEIGHTS_NAME}; export the model again"
            )
        base = super().load(folder, target)
        loaded = PeftModel.from_pretrained(base, saved, torch_device=target.context.device)
        return hide_virtual_tokens(loaded).to(target.context.device).eval()

    def _task_type(self, model: Any, target: Target) -> str:
        if getattr(model, "main_input_name", "") != "input_ids":
            raise ModelError(
                f"{self.name}: {type(model).__name__} reads no text, in front of which PEFT could put virtual tokens; "
                "use lora"
            )
        writes = "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"
        return _HEADS.get(target.task.card.architecture, writes)

    def _over(self, model: torch.nn.Module, config: PeftConfig, target: Target) -> PeftModel:
        from peft import get_peft_model

        from autoft.strategies.prompted_models import hide_virtual_tokens

        try:
            adapted = get_peft_model(model, config, adapter_name=ADAPTER)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            said = first_line(error)
            raise ModelError(
                f"{self.name}: PEFT puts no virtual tokens in front of {type(model).__name__} ({said}); use lora"
            ) from error
        # PEFT writes down the folder that the base was read from, which is of this machine.
        public = public_name(target.source.name, target.source.path)
        adapted.peft_config[ADAPTER].base_model_name_or_path = public
        return hide_virtual_tokens(adapted)

    def _verify_read(self, adapted: PeftModel, target: Target) -> None:
        """Fail where other virtual tokens change nothing, or padding behind the text changes what is said of it.

        The first is so in models that take arguments they do not know; the second in decoders that classify at the
        last token.
        """
        import torch

        tokens = torch.arange(3, 6, device=adapted.device)[None]
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        kind = adapted.peft_config[ADAPTER].task_type
        if kind == "SEQ_2_SEQ_LM":
            inputs["decoder_input_ids"] = tokens
        filler = getattr(adapted.config, "pad_token_id", None) or 0
        padded = {
            name: torch.nn.functional.pad(value, (0, 2), value=filler if name == "input_ids" else 0)
            for name, value in inputs.items()
        }
        training, learned = adapted.training, adapted.prompt_encoder[ADAPTER].embedding.weight
        adapted.eval()
        try:
            with torch.no_grad():
                kept, first = learned.clone(), adapted(**inputs)[0]
                behind = adapted(**padded)[0] if kind == "SEQ_CLS" else first
                learned.copy_(torch.randn_like(learned))
                second = adapted(**inputs)[0]
                learned.copy_(kept)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            said = first_line(error)
            raise ModelError(
                f"{self.name}: {type(adapted.get_base_model()).__name__} takes no virtual tokens ({said}); use lora"
            ) from error
        finally:
            adapted.train(training)
        if torch.equal(first, second):
            raise ModelError(
                f"{self.name}: {type(adapted.get_base_model()).__name__} does not read virtual tokens; use lora"
            )
        if not torch.allclose(first, behind, rtol=0, atol=0.05 * float(first.abs().max())):
            raise ModelError(
                f"{self.name}: {type(adapted.get_base_model()).__name__} takes padding behind virtual tokens for text; "
                "use prefix-tuning or lora"
            )


def _sizes(model: Any, inside: bool) -> dict[str, int]:
    """Return what PEFT wants to know of the body; it looks for it under names that not all configurations have.

    What goes ``inside`` of the layers is as wide as their heads together, which T5 has apart from the width of its states.
    """
    heads = int(getattr(model.config, "num_attention_heads", 1))
    width = getattr(model.config, "d_kv", None)
    if inside and width is None:
        return {}
    return {
        "token_dim": heads * int(width) if inside and width else int(model.get_input_embeddings().embedding_dim),
        "num_attention_heads": heads,
        "num_layers": int(getattr(model.config, "num_hidden_layers", 1)),
    }


def _config_of(model: PeftModel) -> PeftConfig:
    """Return a copy of the configuration, as it was before PEFT added the names of heads to it."""
    config = copy.deepcopy(model.peft_config[ADAPTER])
    config.modules_to_save = sorted(set(config.modules_to_save or ())) or None
    return config


class PromptTuning(VirtualTokens):
    """Train the embeddings of virtual tokens in front of the text.

    Method: Lester et al. 2021 (arXiv:2104.08691): 20 tokens or more hardly differ (figure 3a), embeddings of the
    vocabulary are a better start than random ones (3b), and the learning rate is 0.3 with Adafactor and without decay,
    for 30,000 steps. With AdamW, 3e-2 is what PEFT's guide takes (``clm-prompt-tuning``); on 1,000 movie reviews
    BERT-tiny learned with 3e-3 to 0.1, and nothing with 0.3. The smaller the model, the further behind full
    fine-tuning it is (figure 1).
    """

    name: ClassVar[str] = "prompt-tuning"
    summary: ClassVar[str] = "train the embeddings of virtual tokens in front of the text, and the head"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-3, 0.1, default=3e-2, log=True),
        "tokens": Int(1, 100, default=20, log=True),
        "start": Categorical(("vocabulary", "random")),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 3e-2, "tokens": 20, "start": "vocabulary"},)
    tuner: ClassVar[str] = "PromptTuningConfig"

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the embeddings begin with."""
        return {"prompt_tuning_init": "SAMPLE_VOCAB" if params["start"] == "vocabulary" else "RANDOM"}


class PTuning(VirtualTokens):
    """Train virtual tokens in front of the text that are what a small network makes of trained vectors.

    Method: Liu et al. 2021 (arXiv:2103.10385), whose network is a bidirectional LSTM with two layers on top; PEFT advises
    the plain network of three layers. 20 tokens, a width of 128 and a learning rate of 1e-3 are those of PEFT's guide
    (``ptuning-seq-classification``). The network itself is not needed after training and not kept.
    """

    name: ClassVar[str] = "p-tuning"
    summary: ClassVar[str] = "train virtual tokens in front of the text through a small network, and the head"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-4, 3e-2, default=1e-3, log=True),
        "tokens": Int(1, 100, default=20, log=True),
        "encoder": Categorical(("mlp", "lstm")),
        "hidden": Int(32, 1024, default=128, log=True),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 1e-3, "tokens": 20, "encoder": "mlp", "hidden": 128},
    )
    tuner: ClassVar[str] = "PromptEncoderConfig"

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return kind and width of the network."""
        return {
            "encoder_reparameterization_type": str(params["encoder"]).upper(),
            "encoder_hidden_size": params["hidden"],
        }


class PrefixTuning(VirtualTokens):
    """Train keys and values in front of those of every layer; of an encoder and a decoder, of the decoder's.

    Method: Li and Liang 2021 (arXiv:2101.00190); for encoders, without the network, P-tuning v2 (Liu et al. 2021,
    arXiv:2110.07602). 20 tokens and a learning rate of 1e-2 are those of PEFT's guide (``seq2seq-prefix-tuning``).
    ``projection`` makes the keys and values by a network, as the first paper does for stability; it has a tenth of the
    rate, for with 1e-2 BERT-tiny learned nothing.
    """

    name: ClassVar[str] = "prefix-tuning"
    summary: ClassVar[str] = "train keys and values of virtual tokens in every layer, and the head"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-3, 0.1, default=1e-2, log=True),
        "tokens": Int(1, 100, default=20, log=True),
        "projection": Categorical((False, True)),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 1e-2, "tokens": 20, "projection": False},)
    tuner: ClassVar[str] = "PrefixTuningConfig"
    inside: ClassVar[bool] = True

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return whether a network makes the keys and values."""
        return {"prefix_projection": params["projection"]}

    def parameter_groups(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Return the head, and what a network makes keys and values of with a tenth of the rate."""
        groups = super().parameter_groups(model, learning_rate, params) or []
        if params["projection"]:
            network = [weight for name, weight in model.named_parameters() if "prompt_encoder" in name]
            groups.append({"params": network, "lr": learning_rate / 10})
        return groups or None
