"""Every check of a task finds the defect that it is for, and finds nothing in a task without one."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import numpy as np
import pytest

from autoft.contracts import (
    Baseline,
    Chart,
    Column,
    Examples,
    ExportSpec,
    Mark,
    MarkedText,
    Matrix,
    Option,
    Output,
    Picture,
    Pictures,
    QualityMetric,
    Series,
    Table,
)
from autoft.errors import DataError
from autoft.plugins import load_plugins
from autoft.space import Float
from autoft.testing import checks_of, run_checks
from autoft.testing.models import texts_of, tiny_model
from autoft.testing.probe import Praise, PraiseHits


class Whole(Praise):
    """The kit's own task with every optional member, none of them wrong."""

    card = replace(
        Praise.card,
        name="whole",
        columns=(*Praise.card.columns, Column("place", "text", "where it was said", required=False)),
        options=(Option("strict", "how strict", "no", ("no", "yes")),),
    )

    def demo_rows(self):
        return [{**row, "place": "at home"} for row in super().demo_rows()]

    def space(self):
        return {"task.weight": Float(0.0, 1.0, default=0.5)}

    def baselines(self, rows, context):
        return [Baseline("blame", lambda given: [{"label": "blame", "score": 1.0} for _ in given], trivial=True)]

    def score_targets(self, model, rows, context, batch_size=32):
        said = self.predict(model, rows, context, batch_size)
        return [
            {"sure": one["score"] if one["label"] == row["label"] else 1 - one["score"]}
            for one, row in zip(said, rows, strict=True)
        ]

    def outputs(self, context):
        return [Output("label", str, "praise or blame"), Output("score", float, "how sure")]

    def operating_point(self, rows, predictions, context):
        return {"threshold": min(prediction["score"] for prediction in predictions)}

    def details(self, rows, predictions, context):
        return [
            Table("hits", ("n",), ((len(rows),),)),
            Matrix("confusion", ("a", "b"), ((1.0, 0.0), (0.0, 1.0))),
            Examples("rows", ("text",), tuple((row["text"],) for row in rows)),
            MarkedText("marks", (("a", "some text", (Mark(0, 4, "x", "right"),)),)),
            Pictures("pictures", (Picture("data:image/png;base64,AA==", (("label", "a"),)),)),
            Chart("chart", "a line", "x", "y", (Series("one", (0.0, 1.0), (0.0, 1.0)),)),
        ]


class LyingMetric(PraiseHits):
    """Its sums say something else than its score."""

    def statistics(self, predictions, references, context):
        return np.ones((len(references), 2))

    def aggregate(self, sums):
        return sums[:, 0] / sums[:, 1]


@pytest.fixture(scope="module")
def catalog():
    """One strategy of each stage: what tasks owe to the others is the same."""
    known = load_plugins()
    strategies = {name: known.strategies[name] for name in ("random-deletion", "nf4", "full", "lora", "dynamic-int8")}
    metrics = {**known.quality_metrics, "praise_hits": PraiseHits()}
    return replace(known, strategies=strategies, quality_metrics=metrics)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model("encoder", tmp_path_factory.mktemp("model"), texts_of(Whole().demo_rows()))


def test_a_whole_task_passes_all_checks(catalog, folder):
    results = list(run_checks([Whole()], model=folder, catalog=catalog))
    assert {result.check: result.reason for result in results if result.outcome == "failed"} == {}
    skipped = {result.check: result.reason for result in results if result.outcome == "skipped"}
    assert set(skipped) <= {"check_import_is_light"}, "all else has something to check in a whole task"
    # Each defect below is of a check that ran here.
    assert {name.partition("[")[0] for _, name, _ in DEFECTS} <= {result.check.partition("[")[0] for result in results}
    assert len(results) > 30


# ---------------------------------------------------------------------------------------------------- defects

DEFECTS = []


def defect(check, message):
    """Note a class as a task that fails a check with a message."""

    def note(kind):
        DEFECTS.append((kind, check, message))
        return kind

    return note


def card(check, message, **changes):
    DEFECTS.append((type("Card", (Whole,), {"card": replace(Whole.card, **changes)}), check, message))


card("check_card", "no installed plugin offers the metrics nonsense", metrics=("nonsense",))
card("check_card", "the card's alternatives name tags, and it has no such column", alternatives=(("text", "tags"),))
card("check_card", "the card has a role twice: text, text", columns=(Whole.card.columns[0],) * 2)
card("check_card", "no column that is no target", columns=(Whole.card.columns[1],))
card("check_card", "does not allow its own default 'x'", options=(Option("a", "an option", "x", ("y",)),))
card("check_card", "the card's summary has to be one line", summary="two\nlines")
card("check_card_names_what_is_ignored", "train.label_smoothing has no effect on the loss", ignores=("train.dropout",))


@defect("check_card", "has to begin with 'task.'")
class OddSpace(Whole):
    def space(self):
        return {"weight": Float(0.0, 1.0, default=0.5)}


@defect("check_demo_rows", "there are 2 demo rows; give 3 to 8")
class FewRows(Whole):
    def demo_rows(self):
        return super().demo_rows()[3:5]


@defect("check_demo_rows", "demo row 1 has the roles stars, which the card does not have")
class StrangeRole(Whole):
    def demo_rows(self):
        return [{**row, "stars": 1} for row in super().demo_rows()]


@defect("check_demo_rows", "demo row 2 lacks 'label', which the card requires")
class LacksLabel(Whole):
    def demo_rows(self):
        first, second, *rest = super().demo_rows()
        return [first, {"text": second["text"]}, *rest]


@defect("check_demo_rows", "'text' of kind 'text' is 7, not a text")
class NumberForText(Whole):
    def demo_rows(self):
        return [{**row, "text": 7} for row in super().demo_rows()]


@defect("check_demo_rows", "other rows each time")
class RandomRows(Whole):
    def demo_rows(self):
        return [{**row, "text": str(random.random())} for row in super().demo_rows()]


@defect("check_facts", "is \\('blame', 'praise'\\), not .*which JSON does not keep|which JSON does not keep")
class TupleFacts(Whole):
    def facts(self, rows, options):
        return {"labels": ("blame", "praise")}


@defect("check_facts", r"facts\(\) changes the rows")
class FactsChangeRows(Whole):
    def facts(self, rows, options):
        rows[0]["text"] = rows[0]["text"].lower()
        return super().facts(rows, options)


@defect("check_facts", r"facts\(\) of the same rows differ")
class RandomFacts(Whole):
    def facts(self, rows, options):
        return {**super().facts(rows, options), "seed": random.random()}


@defect("check_model_loads", "with the same seed, classifier.weight has other weights")
class UnseededHead(Whole):
    def load_model(self, source, context):
        import torch

        model = super().load_model(source, context)
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            model.classifier.weight.normal_(generator=generator)
        return model


@defect("check_load_kwargs_are_honoured", "does not pass on source.load_kwargs")
class DeafLoad(Whole):
    def load_model(self, source, context):
        return super().load_model(replace(source, load_kwargs={}), context)


@defect("check_references_are_plain", "a reference is no plain JSON")
class SetReference(Whole):
    def reference(self, row, context):
        return {row["label"]}


@defect("check_encode_is_pure", r"encode\(\) changes the rows")
class EncodeChangesRows(Whole):
    def encode(self, rows, context):
        features = super().encode(rows, context)
        for row in rows:
            row.pop("label", None)
        return features


@defect("check_encode_is_pure", r"encode\(\) of the same rows differs")
class RandomEncode(Whole):
    def encode(self, rows, context):
        features = super().encode(rows, context)
        random.choice(features[0]["input_ids"])
        features[0]["input_ids"][1] = random.randrange(10_000)
        return features


@defect("check_encode_is_pure", "returned 7 features for 8 rows")
class LosesRow(Whole):
    def encode(self, rows, context):
        features = super().encode(rows, context)
        return features[1:] if len(features) > 7 else features


@defect("check_features_of_a_row_stand_alone", r"features of row 1\['input_ids'\] has 6 entries, not")
class PaddedFeatures(Whole):
    def encode(self, rows, context):
        features = super().encode(rows, context)
        longest = max(len(feature["input_ids"]) for feature in features)
        for feature in features:
            for values in (feature["input_ids"], feature["attention_mask"], feature["token_type_ids"]):
                values.extend([0] * (longest - len(values)))
        return features


@defect("check_features_can_be_kept", "cannot be kept")
class ObjectFeatures(Whole):
    def encode(self, rows, context):
        return [{**feature, "row": object()} for feature in super().encode(rows, context)]


@defect("check_encode_reads_own_parameters_only", "KeyError|train.max_length")
class NosyEncode(Whole):
    def encode(self, rows, context):
        context = replace(context, max_length=min(context.max_length, context.params["train.max_length"]))
        return super().encode(rows, context)


@defect("check_collate_makes_tensors", "collate\\(\\) gives list under 'labels', no tensor")
class ListBatch(Whole):
    def collate(self, features, context):
        return {**super().collate(features, context), "labels": [feature["labels"] for feature in features]}


@defect("check_loss_has_gradients", "the loss has no gradient")
class DetachedLoss(Whole):
    def loss(self, model, batch, context):
        return super().loss(model, batch, context).detach()


@defect("check_loss_has_gradients", "a tensor with one number")
class LossOfEachRow(Whole):
    def loss(self, model, batch, context):
        return super().loss(model, batch, context).expand(2)


@defect("check_loss_has_gradients", "the loss of the demo rows is nan")
class NanLoss(Whole):
    def loss(self, model, batch, context):
        return super().loss(model, batch, context) * float("nan")


@defect("check_card_names_what_is_ignored", "the card ignores train.label_smoothing, but it changes the loss")
class HiddenSmoothing(Whole):
    def loss(self, model, batch, context):
        return super().loss(model, batch, context) * (1 + context.params["train.label_smoothing"])


@defect("check_learns_demo_rows_by_heart", "it cannot learn them by heart")
class BlindEncode(Whole):
    """All rows look the same to the model."""

    def encode(self, rows, context):
        return super().encode([{**row, "text": "the"} for row in rows], context)


@defect("check_scores_near_perfect", "praise_hits is 0 .*do predictions and references go together")
class TurnedLabels(Whole):
    def predict(self, model, rows, context, batch_size=32):
        other = {"praise": "blame", "blame": "praise"}
        return [{**one, "label": other[one["label"]]} for one in super().predict(model, rows, context, batch_size)]


@defect("check_predictions_are_plain", "a prediction is no plain JSON")
class NumpyScores(Whole):
    def predict(self, model, rows, context, batch_size=32):
        said = super().predict(model, rows, context, batch_size)
        return [{**one, "score": np.float32(one["score"])} for one in said]


@defect("check_predictions_are_plain", r"predict\(\) changes the rows")
class PredictChangesRows(Whole):
    def predict(self, model, rows, context, batch_size=32):
        said = super().predict(model, rows, context, batch_size)
        for row in rows:
            row["seen"] = True
        return said


@defect("check_predictions_are_as_outputs_say", "a prediction has score, which")
class UntoldOutput(Whole):
    def outputs(self, context):
        return [Output("label", str, "praise or blame")]


@defect("check_predictions_are_as_outputs_say", "a prediction lacks 'margin'")
class AbsentOutput(Whole):
    def outputs(self, context):
        return [*super().outputs(context), Output("margin", float, "how far from the other")]


@defect("check_predictions_are_as_outputs_say", "'score' of a prediction is not as")
class OtherOutput(Whole):
    def outputs(self, context):
        return [Output("label", str, "praise or blame"), Output("score", str, "how sure")]


@defect("check_predictions_keep_the_order", "predictions differ")
class SortedPredictions(Whole):
    def predict(self, model, rows, context, batch_size=32):
        return super().predict(model, sorted(rows, key=lambda row: row["text"]), context, batch_size)


@defect("check_predictions_keep_the_order", "predictions differ")
class Unmasked(Whole):
    """What fills up a row is read as if it were text: here the words of the longest row, so that it surely shows."""

    def _tokens(self, rows, context, **settings):
        tokens = super()._tokens(rows, context, **settings)
        if "padding" in settings:
            filled, longest = tokens["attention_mask"] == 0, tokens["attention_mask"].sum(1).argmax()
            tokens["input_ids"][filled] = tokens["input_ids"][longest].expand_as(filled)[filled]
            tokens["attention_mask"][:] = 1
        return tokens


@defect("check_predict_turns_dropout_off", r"after model.train\(\), so call model.eval\(\)")
class LeavesDropoutOn(Whole):
    def predict(self, model, rows, context, batch_size=32):
        training = getattr(model, "training", False)
        if training:
            model.eval = lambda: model
        return super().predict(model, rows, context, batch_size)


@defect("check_no_rows_no_predictions", "IndexError|list index")
class NeedsRow(Whole):
    def predict(self, model, rows, context, batch_size=32):
        assert rows[0] is not None
        return super().predict(model, rows, context, batch_size)


@defect("check_odd_texts_are_predicted", "IndexError|list index")
class NeedsWord(Whole):
    def predict(self, model, rows, context, batch_size=32):
        said = super().predict(model, rows, context, batch_size)
        return [{**one, "first": row["text"].split()[0]} for one, row in zip(said, rows, strict=True)]


@defect("check_odd_texts_are_predicted", "most odd texts are refused")
class Fussy(Whole):
    def predict(self, model, rows, context, batch_size=32):
        known = {row["text"] for row in self.demo_rows()}
        for row in rows:
            if row["text"] not in known:
                raise DataError("unheard of")
        return super().predict(model, rows, context, batch_size)


@defect("check_bad_rows_are_told", r"'text' of a row is nothing: predict\(\) raises KeyError")
class TracebackForBadRows(Whole):
    def predict(self, model, rows, context, batch_size=32):
        return super().predict(model, [{"text": row["text"]} for row in rows], context, batch_size)


@defect("check_bad_rows_are_told", r"a row lacks 'text', which the card requires, and predict\(\) does not mind")
class MakesUpRows(Whole):
    def predict(self, model, rows, context, batch_size=32):
        return super().predict(model, [{"text": str(row.get("text", ""))} for row in rows], context, batch_size)


@defect("check_bad_rows_are_told", r"'label' of a training row is \{'a': 1\}: facts\(\) or encode\(\) raises TypeError")
class TracebackForBadLabels(Whole):
    def facts(self, rows, options):
        return {"labels": ["blame", "praise"], "count": len({row["label"] for row in rows})}


@defect("check_optional_columns_may_be_absent", "KeyError|place")
class NeedsOptional(Whole):
    def encode(self, rows, context):
        return super().encode([{**row, "text": row["text"] + row["place"]} for row in rows], context)


@defect("check_baselines", "none of the baselines is trivial")
class NoTrivial(Whole):
    def baselines(self, rows, context):
        return [replace(one, trivial=False) for one in super().baselines(rows, context)]


@defect("check_baselines", "praise_hits of the baseline 'fresh' is nan")
class UnscoredBaseline(Whole):
    class Unscored(PraiseHits):
        def score(self, predictions, references, context):
            if any("score" not in said for said in predictions):
                return float("nan")
            return super().score(predictions, references, context)

    metric = Unscored()

    def baselines(self, rows, context):
        fresh = Baseline("fresh", lambda given: [{"label": "praise"} for _ in given])
        return [*super().baselines(rows, context), fresh]


@defect("check_baselines", "the baseline 'blame' predicts 7 rows")
class ShortBaseline(Whole):
    def baselines(self, rows, context):
        (one,) = super().baselines(rows, context)
        return [replace(one, predict=lambda given: one.predict(given[1:]))]


@defect("check_details_can_be_shown", "has a str; reports show Table, Matrix")
class StrangeDetail(Whole):
    def details(self, rows, predictions, context):
        return ["all is well"]


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        (Table("t", ("a", "b"), ((1,),)), "a row has 1 cells for 2 columns"),
        (Table("t", ("a",), ((np.float32(1),),)), "no plain JSON"),
        (Matrix("m", ("a", "b"), ((1.0,),)), "is not 2 by 2"),
        (MarkedText("m", (("", "ab", (Mark(1, 3, "x", "right"),)),)), "a mark from 1 to 3 in a text of 2"),
        (Pictures("p", (Picture("https://example.org/a.png", ()),)), "data:image/ addresses only"),
        (Chart("c", "", "x", "y", (Series("s", (1.0,), ()),)), "not as many places as values"),
    ],
)
def test_incomplete_details_are_found(detail, message, catalog, folder):
    kind = type("Details", (Whole,), {"details": lambda self, rows, predictions, context: [detail]})
    with pytest.raises(AssertionError, match=message):
        one_check(kind(), "check_details_can_be_shown", catalog, folder)()


@defect("check_files_keep_predictions", "predictions differ from its files")
class ForgetsHead(Whole):
    def load_model(self, source, context):
        model = super().load_model(source, context)
        model.classifier.reset_parameters()
        return model


@defect("check_bootstrap_agrees_with_score[praise_hits]", "by sums, is 1.0, not .*which score\\(\\) says")
class Bootstrap(Whole):
    metric: QualityMetric = LyingMetric()


@defect("check_targets_are_scored", "in another order and with batch_size=2")
class RelativeScores(Whole):
    def score_targets(self, model, rows, context, batch_size=32):
        return [{"sure": float(i)} for i, _ in enumerate(rows)]


@defect("check_operating_point_is_plain", "no plain JSON")
class NumpyPoint(Whole):
    def operating_point(self, rows, predictions, context):
        return {"threshold": np.float32(0.5)}


@defect("check_export_inputs_fit_the_model", "varies, but the example has 1 there; give 2")
class ShortExample(Whole):
    def export_inputs(self, context):
        spec = super().export_inputs(context)
        return replace(spec, inputs={name: value[:1] for name, value in spec.inputs.items()})


@defect("check_export_inputs_fit_the_model", "no tensor 'start_logits'")
class WrongOutput(Whole):
    def export_inputs(self, context):
        return ExportSpec(**{**vars(super().export_inputs(context)), "outputs": ("start_logits",)})


@defect("check_augmenter[random-deletion]", "unheard of")
class RefusesChanges(Whole):
    def encode(self, rows, context):
        known = {row["text"] for row in self.demo_rows()}
        for row in rows:
            if row["text"] not in known:
                raise DataError("unheard of")
        return super().encode(rows, context)


@defect("check_pipeline[full]", "the loss of the demo rows from|steps bring the loss")
class StandingStill(Whole):
    def loss(self, model, batch, context):
        return super().loss(model, batch, context) * 0.0 + 1.0


def one_check(task, name, catalog, folder):
    metric = getattr(task, "metric", PraiseHits())
    known = replace(catalog, quality_metrics={**catalog.quality_metrics, metric.name: metric})
    (check,) = [check for check in checks_of([task], model=folder, catalog=known) if check.name == name]
    return check


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [pytest.param(*entry, id=f"{entry[0].__name__}-{i}") for i, entry in enumerate(DEFECTS)],
)
def test_a_defect_is_found(kind, name, message, catalog, folder):
    with pytest.raises(Exception, match=message):
        one_check(kind(), name, catalog, folder)()


def test_a_module_that_imports_torch_is_found(tmp_path, monkeypatch):
    (tmp_path / "slow_task.py").write_text(
        "import torch\nfrom autoft.testing.probe import Praise\nclass Slow(Praise):\n    weights = torch.zeros(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import slow_task

    try:
        check, *_ = checks_of([slow_task.Slow()])
        assert check.name == "check_import_is_light"
        with pytest.raises(AssertionError, match="loading it imports torch"):
            check()
    finally:
        del sys.modules["slow_task"]
