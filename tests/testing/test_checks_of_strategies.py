"""Every check of a strategy finds the defect that it is for."""

from __future__ import annotations

import copy
import random
from typing import ClassVar

import pytest

from autoft.contracts import Augmenter, CostMetric, PostTrainingQuantizer, Refusal, Regularizer
from autoft.space import Categorical, Float
from autoft.strategies.augmentation import RandomSwap
from autoft.strategies.dynamic_int8 import DynamicInt8
from autoft.strategies.full import Full
from autoft.testing import checks_of


def one_check(strategy, name):
    (check,) = [check for check in checks_of([strategy]) if check.name == name]
    return check


DEFECTS = []


def defect(check, message):
    def note(kind):
        DEFECTS.append((kind, check, message))
        return kind

    return note


class Shout(Augmenter):
    """Without a defect: words become upper case."""

    name = "shout"
    summary = "some words in upper case"
    space: ClassVar = {"rate": Float(0.1, 0.9, default=0.5)}

    def augment(self, row, card, rng, params, learned=None):
        def change(text):
            return " ".join(word.upper() if rng.random() < params["rate"] else word for word in text.split(" "))

        roles = {column.role for column in card.inputs if column.kind == "text"}
        return {role: change(value) if role in roles and value else value for role, value in row.items()}


@pytest.mark.parametrize(
    "name",
    ["check_names", "check_augmenter_keeps_the_row", "check_augmenter_changes_texts"],
)
def test_an_augmenter_without_a_defect_passes(name):
    one_check(Shout(), name)()


@defect("check_names", "the summary has to be one line")
class NoSummary(Shout):
    summary = ""


@defect("check_names", "'in.tensity' is no plain name")
class DottedParameter(Shout):
    space: ClassVar = {"in.tensity": Float(0.1, 0.9, default=0.5)}


@defect("check_names", "published rate=2.0 lies outside of 0.1 to 0.9")
class PublishedOutside(Shout):
    published = ({"rate": 2.0},)


@defect("check_names", "'strength', which is no parameter")
class PublishedUnknown(Shout):
    published = ({"strength": 0.5},)


@defect("check_names", "yields is 'loud', none of")
class StrangeState(Shout):
    yields = "loud"


@defect("check_refuses_with_a_sentence[encoder]", "one line that names shout, given 'no'")
class Curt(Shout):
    def check(self, target):
        return Refusal("no")


@defect("check_augmenter_keeps_the_row", "all chance has to come from it")
class OwnChance(Shout):
    def augment(self, row, card, rng, params, learned=None):
        return super().augment(row, card, random, params, learned)


@defect("check_augmenter_keeps_the_row", "may not change 'answer'")
class TouchesTargets(Shout):
    def augment(self, row, card, rng, params, learned=None):
        return {**super().augment(row, card, rng, params, learned), "answer": row["answer"].upper()}


@defect("check_augmenter_keeps_the_row", r"augment\(\) changes the row that it is given")
class ChangesGiven(Shout):
    def augment(self, row, card, rng, params, learned=None):
        row["text"] = row["text"].upper() + "!"
        return row


@defect("check_augmenter_keeps_the_row", "nothing is left of 'text'")
class Empties(Shout):
    def augment(self, row, card, rng, params, learned=None):
        return {**row, "text": ""}


@defect("check_augmenter_keeps_the_row", "and now has")
class AddsRoles(Shout):
    def augment(self, row, card, rng, params, learned=None):
        return {**row, "loud": True}


@defect("check_augmenter_keeps_the_row", "IndexError|index out of range")
class NeedsWords(Shout):
    def augment(self, row, card, rng, params, learned=None):
        return {**row, "text": row["text"].split()[0]}


@defect(
    "check_augmenter_keeps_the_row",
    r"makes a target wrong: 'answer' held \['whale oil'\], and now 'whale oil' does not",
)
class LosesPlaces(Shout):
    realigns: ClassVar = frozenset({"span"})

    def breaks(self, column, card):
        return column.kind in self.invalidates and not column.of

    def augment(self, row, card, rng, params, learned=None):
        return {**row, "text": f"so {row['text']}"}


@defect("check_augmenter_keeps_the_row", "makes a target wrong: 'tags' had entities")
class SwapsTags(Shout):
    rewrites: ClassVar = frozenset({"tokens"})
    invalidates: ClassVar = frozenset()
    realigns: ClassVar = frozenset({"tags"})

    def augment(self, row, card, rng, params, learned=None):
        return {**row, "tags": row["tags"][::-1]}


@defect("check_augmenter_keeps_the_row", "a word of 'words' is left empty")
class EmptiesWords(SwapsTags):
    def augment(self, row, card, rng, params, learned=None):
        return {**row, "words": ["", *row["words"][1:]]}


@defect("check_augmenter_changes_texts", "40 tries at .* change nothing")
class DoesNothing(Shout):
    def augment(self, row, card, rng, params, learned=None):
        return dict(row)


@defect("check_augmenter_refuses_what_it_invalidates", "invalidates columns of kind 'span'")
class NeverRefuses(Shout):
    def check(self, target):
        return None


@defect("check_compressor_keeps_predictions[encoder]", "changes the given model: classifier.bias")
class InPlace(DynamicInt8):
    def apply(self, model, target, rows, params):
        import torch

        with torch.no_grad():
            model.classifier.bias += 1.0
        return super().apply(model, target, rows, params)


@defect("check_compressor_keeps_predictions[encoder]", "leaves the given model in another mode")
class LeavesTraining(DynamicInt8):
    def apply(self, model, target, rows, params):
        answer = super().apply(model, target, rows, params)
        model.train()
        return answer


@defect("check_compressor_keeps_predictions[encoder]", "praise_hits falls from 1 to")
class Destroys(PostTrainingQuantizer):
    name = "destroys"
    summary = "keeps nothing"

    def apply(self, model, target, rows, params):
        import torch

        broken = copy.deepcopy(model)
        with torch.no_grad():
            broken.classifier.weight.zero_()
        return broken


@defect("check_compressor_keeps_predictions[encoder]", "its files predict otherwise than the compressed model did")
class SavesAnother(PostTrainingQuantizer):
    name = "saves-another"
    summary = "writes other weights than it has"

    def apply(self, model, target, rows, params):
        return copy.deepcopy(model)

    def save(self, model, folder):
        import torch

        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifier.weight.mul_(-1.0)
        super().save(other, folder)


@defect("check_quantized_files_are_smaller[encoder]", "the dense one")
class SavesNothing(PostTrainingQuantizer):
    name = "saves-nothing"
    summary = "as large as before"

    def apply(self, model, target, rows, params):
        return copy.deepcopy(model)


class Adapted(Full):
    name = "adapted"


@defect("check_adapter_trains_and_merges[adapted, encoder]", "leaves nothing to train")
class TrainsNothing(Adapted):
    def attach(self, model, target, params):
        return model.requires_grad_(False)


@defect(
    "check_adapter_trains_and_merges[adapted, encoder]", "the loss of the merged model is .*, as that of the adapted"
)
class MergesAnother(Adapted):
    def merge(self, model, base, target):
        import torch

        with torch.no_grad():
            model.classifier.weight.mul_(-1.0)
        return model


@pytest.mark.parametrize(("kind", "name", "message"), [pytest.param(*entry, id=entry[0].__name__) for entry in DEFECTS])
def test_a_defect_is_found(kind, name, message):
    with pytest.raises(Exception, match=message):
        one_check(kind(), name)()


def test_each_choice_of_a_parameter_is_tried():
    class Choosy(RandomSwap):
        name = "choosy"
        space: ClassVar = {"rate": Float(0.1, 0.9, default=0.5), "mode": Categorical(("plain", "broken"))}

        def augment(self, row, card, rng, params, learned=None):
            assert params["mode"] == "plain"
            return super().augment(row, card, rng, params, learned)

    with pytest.raises(AssertionError, match="broken"):
        one_check(Choosy(), "check_augmenter_keeps_the_row")()


@pytest.mark.parametrize(
    ("columns", "figures", "name", "message"),
    [
        (("watts_ms",), {"watts_ms": float("nan")}, "check_cost_is_measured", "it measures {'watts_ms': nan}"),
        (("watts_ms",), {"other": 1.0}, "check_cost_is_measured", "it names watts_ms, and measures other"),
        (("watts",), {"watts": 1.0}, "check_cost_names", "has to end in _ms or _seconds"),
    ],
)
def test_a_cost_that_measures_nonsense_is_found(columns, figures, name, message):
    given = columns

    class Watts(CostMetric):
        summary = "power"
        unit = "seconds"
        columns = given

        def measure(self, served):
            return figures

    Watts.name = "watts"
    with pytest.raises(AssertionError, match=message):
        one_check(Watts(), name)()


class Quiet(Regularizer):
    """Without a defect: a larger loss."""

    name = "quiet"
    summary = "twice the loss"

    def loss(self, compute, model, batch, target, params, state):
        return 2 * compute(batch)


def test_a_regularizer_without_a_defect_passes():
    one_check(Quiet(), "check_regularizer_trains_and_leaves_nothing[encoder]")()


LEFT = "check_regularizer_trains_and_leaves_nothing[encoder]"


@defect(LEFT, "is not gone from the model")
class LeavesAHook(Quiet):
    def prepare(self, model, target, params):
        model.register_forward_hook(lambda module, inputs, output: None)


@defect(LEFT, "is not gone from the model")
class LeavesAForward(Quiet):
    def prepare(self, model, target, params):
        model.forward = model.forward


@defect(LEFT, "other weights than before")
class LeavesAWeight(Quiet):
    def prepare(self, model, target, params):
        import torch

        model.register_buffer("further", torch.zeros(2))


@defect(LEFT, "bring the loss of the demo rows from")
class Upwards(Quiet):
    def loss(self, compute, model, batch, target, params, state):
        return -compute(batch)


@defect(LEFT, "no finite scalar")
class OneForEachRow(Quiet):
    def loss(self, compute, model, batch, target, params, state):
        return compute(batch).repeat(3)


@defect(LEFT, "names what is no parameter: nowhere")
class RatesOfNothing(Quiet):
    def learning_rates(self, model, target, params):
        return {"nowhere": 0.5}


@defect(LEFT, "are no factors of 0 or more")
class NegativeRates(Quiet):
    def learning_rates(self, model, target, params):
        return {name: -1.0 for name, _ in model.named_parameters()}


@defect(LEFT, "weights that do not fit: nowhere")
class AverageOfNothing(Quiet):
    def averaged(self, model, params, state):
        import torch

        return {"nowhere": torch.zeros(1)}


@defect("check_names", "the stage is 'adapt', not 'train'")
class OnAnotherStage(Quiet):
    stage = "adapt"
