"""The built-in strategies, a file each, through the same hooks that strangers use."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import Strategy
from autoft.hookspecs import hookimpl
from autoft.strategies.adversarial import Fgm, Mixup, Pgd
from autoft.strategies.augmentation import (
    CharacterNoise,
    RandomDeletion,
    RandomInsertion,
    RandomReplacement,
    RandomSwap,
)
from autoft.strategies.averaging import Ema, Swa
from autoft.strategies.bf16_weights import Bf16Weights, Fp16Weights
from autoft.strategies.bitsandbytes import Fp4Base, Int8Base, Nf4Base
from autoft.strategies.bnb_weights import BnbFp4, BnbInt8, BnbNf4
from autoft.strategies.consistency import RDrop, TokenCutoff
from autoft.strategies.contrastive import SupervisedContrastive
from autoft.strategies.distillation import Distillation
from autoft.strategies.dynamic_int8 import DynamicInt8
from autoft.strategies.full import Full
from autoft.strategies.gptq import Awq, Gptq
from autoft.strategies.head_only import HeadOnly
from autoft.strategies.head_pruning import HeadPruning
from autoft.strategies.layer_pruning import FfnPruning, LayerPruning
from autoft.strategies.lora import Dora, Lora
from autoft.strategies.low_rank import LowRank
from autoft.strategies.magnitude_pruning import MagnitudePruning
from autoft.strategies.movement_pruning import MovementPruning
from autoft.strategies.onnx import Onnx, OnnxInt8
from autoft.strategies.onnx_quantization import OnnxInt4, OnnxMixed, OnnxStaticInt8
from autoft.strategies.partial import BitFit, LayerNorm, TopLayers
from autoft.strategies.peft_tuners import (
    Adalora,
    Boft,
    Fourierft,
    Hra,
    Ia3,
    Loha,
    Lokr,
    Miss,
    Oft,
    Randlora,
    Shira,
    VbLora,
    Vera,
)
from autoft.strategies.pictures import ColourJitter, HorizontalFlip, RandomErasing, RandomResizedCrop
from autoft.strategies.quantization_aware import QuantizationAware
from autoft.strategies.reordering import Crop, SentenceOrder, WordOrder
from autoft.strategies.rewording import BackTranslation, EmbeddingNeighbours, FillerWords, MaskedReplacement, Synonyms
from autoft.strategies.start_weights import L1, L2Sp, LayerDecay, Mixout, ReinitTop
from autoft.strategies.tagged_words import LabelWiseReplacement, MentionReplacement, SegmentShuffle
from autoft.strategies.torchao import TorchaoFp8, TorchaoInt4, TorchaoInt8, TorchaoInt8Dynamic
from autoft.strategies.trainable_tokens import TrainableTokens
from autoft.strategies.virtual_tokens import PrefixTuning, PromptTuning, PTuning
from autoft.strategies.vocabulary_pruning import VocabularyPruning

__all__ = ["autoft_strategies"]


@hookimpl
def autoft_strategies() -> Sequence[Strategy]:
    """Return one of each."""
    return (
        RandomInsertion(),
        RandomDeletion(),
        RandomSwap(),
        RandomReplacement(),
        CharacterNoise(),
        WordOrder(),
        SentenceOrder(),
        Crop(),
        FillerWords(),
        Synonyms(),
        EmbeddingNeighbours(),
        MaskedReplacement(),
        BackTranslation(),
        LabelWiseReplacement(),
        MentionReplacement(),
        SegmentShuffle(),
        HorizontalFlip(),
        RandomResizedCrop(),
        ColourJitter(),
        RandomErasing(),
        Int8Base(),
        Nf4Base(),
        Fp4Base(),
        Full(),
        HeadOnly(),
        TopLayers(),
        BitFit(),
        LayerNorm(),
        Lora(),
        RDrop(),
        Fgm(),
        Pgd(),
        SupervisedContrastive(),
        Mixup(),
        TokenCutoff(),
        L1(),
        L2Sp(),
        Mixout(),
        LayerDecay(),
        ReinitTop(),
        Ema(),
        Swa(),
        Dora(),
        Adalora(),
        Boft(),
        Fourierft(),
        Hra(),
        Ia3(),
        Loha(),
        Lokr(),
        Miss(),
        Oft(),
        Randlora(),
        Shira(),
        VbLora(),
        Vera(),
        TrainableTokens(),
        PrefixTuning(),
        PromptTuning(),
        PTuning(),
        MagnitudePruning(),
        MovementPruning(),
        Distillation(),
        VocabularyPruning(),
        LayerPruning(),
        FfnPruning(),
        HeadPruning(),
        LowRank(),
        QuantizationAware(),
        DynamicInt8(),
        Onnx(),
        OnnxInt8(),
        OnnxStaticInt8(),
        OnnxInt4(),
        OnnxMixed(),
        Bf16Weights(),
        Fp16Weights(),
        BnbInt8(),
        BnbNf4(),
        BnbFp4(),
        TorchaoInt8(),
        TorchaoInt8Dynamic(),
        TorchaoInt4(),
        TorchaoFp8(),
        Gptq(),
        Awq(),
    )
