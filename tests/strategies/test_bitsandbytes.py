from __future__ import annotations
import pytest, torch
from autoft.strategies.lora import Lora
from autoft.strategies.bitsandbytes import Int8Base, Nf4Base
PARAMS = {name: domain.default for name, domain in Lora.space.items()}
def relative(got, expected):
    return float((got - expected).norm() / expected.norm())

@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("quantizer", [Int8Base(), Nf4Base()], ids=lambda q: q.name)
def test_a(model_type, quantizer, make_checkpoint, make_target, load, train, logits, tmp_path):
    target = make_target(make_checkpoint(model_type))
    kw = quantizer.load_kwargs(target, {})

    model = quantizer.prepare(load(target, **kw), target)
    model = Lora().attach(model, target, PARAMS)
    a = train(model, target)
    logits(model, target)
    b = train(model, target, steps=6)
    print(a[0], a[-1], b[0], b[-1])
    expected = logits(model, target)
    full = Lora().merge(model, lambda: load(target), target)
    def dq():
        return quantizer.dequantize(quantizer.prepare(load(target, seed=5, **kw), target), target)
    deq = Lora().merge(model, dq, target)
    print("REL", model_type, quantizer.name, relative(logits(full, target), expected), relative(logits(deq, target), expected), relative(logits(load(target),target), expected), (expected-expected.mean(0)).norm()/expected.norm())
    deq.save_pretrained(tmp_path)
    again = type(deq).from_pretrained(tmp_path)
    print("AGAIN", relative(logits(again, target), logits(deq, target)), {p.dtype for p in deq.parameters()})
