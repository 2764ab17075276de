"""What an adapter learned, written before it is merged, gives PEFT the merged model again over the same base."""

from __future__ import annotations

import copy

import pytest
import torch

from autoft.plugins import load_plugins
from autoft.strategies.peft_adapter import PeftAdapter
from autoft.testing.workbench import Workbench

# Minutes of whole searches and exports; the gate has others of both.
pytestmark = pytest.mark.slow

CATALOG = load_plugins()
NAMES = sorted(
    name for name, one in CATALOG.adapters.items() if isinstance(one, PeftAdapter) and name != "trainable-tokens"
)


@pytest.fixture(scope="module")
def bench():
    return Workbench(CATALOG.task("text-classification"), CATALOG)


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_an_adapter_make_the_merged_model_of_the_base(name, bench, tmp_path):
    from peft import PeftModel

    adapter, target = CATALOG.adapters[name], bench.target
    params = {name: domain.default for name, domain in adapter.space.items()}
    torch.manual_seed(0)
    base = bench.load_model()
    model = adapter.attach(copy.deepcopy(base), target, params)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert adapter.save_learned(model, tmp_path / "adapter")
    batch = {key: value for key, value in bench.batch().items() if key != "labels"}
    merged = adapter.merge(model, None, target)
    again = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, merged(**batch).logits, rtol=1e-3, atol=1e-4)


def test_what_trains_the_model_itself_has_no_files_of_its_own(bench, tmp_path):
    for name in ("full", "head-only", "bitfit", "trainable-tokens"):
        assert not CATALOG.adapters[name].save_learned(bench.load_model(), tmp_path / name)
        assert not (tmp_path / name).exists()
