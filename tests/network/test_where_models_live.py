"""Models that are offloaded, half precise, quantised, compiled, wrapped, or have two halves: what docs/ promises."""

import numpy as np
import pytest
import torch
from conftest import (
    SOURCE,
    TARGET,
    TEXTS,
    WordTokenizer,
    assert_untouched,
    count_hooks,
    flat,
    snapshot,
    tiny,
)
from network_cases import IDS, Blocks, fit, seeded
from torch import nn

import lineas
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.source_passes import SourcePasses
from lineas.network import data
from lineas.network.state import frozen
from lineas.responses.probe import probe
from lineas.responses.runner import Runner


def moved_by(steering):
    return flat(steering) - np.repeat([1, 0], len(flat(steering)) // 2)


def distance(one, other):
    """How far apart two steerings are, relative to how far the second is from doing nothing."""
    assert one.sites == other.sites
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(moved_by(other))


# -- offloaded and spread by a device map --


def cpu_offloaded(model, folder):
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offloaded(model, folder):
    from accelerate import disk_offload

    return disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def dispatched(model, folder):
    """The first layer stays, the rest is on disk."""
    from accelerate import dispatch_model

    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{k}": "disk" if k else "cpu" for k in range(3)}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


OFFLOADED = [cpu_offloaded, disk_offloaded, dispatched]


def places(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.device.type, tensor.requires_grad) for name, tensor in tensors}


@pytest.mark.parametrize("offloaded", OFFLOADED)
def test_an_offloaded_model_gets_the_same_bits_and_is_left_where_it_was(
    offloaded, tmp_path, fitted_llama, llama_logits
):
    model = tiny("llama")
    model.model.layers[1].requires_grad_(False)
    model = offloaded(model, tmp_path)
    before, hooks = places(model), count_hooks(model)
    assert {"meta"} <= {device for device, _ in before.values()}
    steering = fit(model)
    assert np.array_equal(flat(steering), flat(fitted_llama))
    assert steering.history["loss"] == fitted_llama.history["loss"]
    assert places(model) == before
    assert count_hooks(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, llama_logits[1])
        with steering.apply(model):
            assert torch.equal(model(IDS).logits, llama_logits[0])
    assert places(model) == before


@pytest.mark.parametrize("fails", [False, True])
def test_weights_loaded_around_a_site_are_dropped_again(fails):
    options = {"sides": (SOURCE, TARGET), "sites": r"blocks\.\d\.inner"}
    expected, model = fit(seeded(Blocks), **options), cpu_offloaded(seeded(Blocks), None)
    before = places(model)
    assert {device for device, _ in before.values()} == {"meta"}
    assert np.array_equal(flat(fit(model, **options)), flat(expected))
    assert places(model) == before


def test_a_model_that_was_never_loaded_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match='model: expected weights, got none: they are on the "meta" device'):
        fit(model, sides=(SOURCE, TARGET), sites="0")


# -- bfloat16 and float16 --


def rounded(dtype):
    """The tiny Llama with weights of that precision, and the same weights in float32."""
    return tiny("llama").to(dtype), tiny("llama").to(dtype).float()


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_half_precise_model_gets_float32_maps_near_those_of_the_float32_model(dtype, close):
    half, full = rounded(dtype)
    before = snapshot(half)
    steering = fit(half)
    assert flat(steering).dtype == np.float32
    assert distance(steering, fit(full)) < close
    assert_untouched(half, before)
    with steering.apply(half):
        logits = half(IDS).logits
    assert logits.dtype == dtype
    with steering.apply(full):
        torch.testing.assert_close(logits.float(), full(IDS).logits, atol=0.1, rtol=0.1)


def problem(model, src, tgt, **options):
    (source,), (target,) = (data.as_batches(side, "src", model, WordTokenizer()) for side in (src, tgt))
    layout = probe(model, lineas.find_sites(model, **options), source)
    runner = Runner(model, layout, layout, "mean")
    return ModelLoss(SourcePasses(runner, [source]), [runner.collect([target])])


@pytest.mark.parametrize("scale", [1.0, 2.0**-12, 2.0**-24])
def test_slopes_too_small_for_float16_reach_the_maps(scale):
    """With many sites, units and samples each response's slope is tiny; here the loss is made so by a factor."""
    gradients = []
    for model in rounded(torch.float16):
        with frozen(model):
            loss = problem(model, *TEXTS)
            gradients.append(loss.evaluate(loss.identity(), scale).gradient() / np.float32(scale))
    half, full = gradients
    assert np.linalg.norm(half - full) < 0.01 * np.linalg.norm(full)


def chain(factor, dtype):
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))).to(dtype)
    for layer, weight in zip(net, (1, factor, factor), strict=True):
        layer.weight.data = weight * torch.ones(4, 4, dtype=dtype)
    return net


def test_slopes_that_overflow_in_float16_are_scaled_down_until_they_do_not():
    source, target = (1e-4 * side for side in (SOURCE, TARGET))
    gradients = []
    for dtype in (torch.float16, torch.float32):
        net = chain(200, dtype)
        with frozen(net):
            loss = problem(net, source.half().to(dtype), target.half().to(dtype), pattern=["0", "2"])
            gradients.append(loss.evaluate(loss.identity()).gradient())
    assert np.linalg.norm(gradients[0] - gradients[1]) < 0.01 * np.linalg.norm(gradients[1])


# -- 8 bits --


class Int8Linear(nn.Module):
    """Weights as integers and a scale a row, multiplied out in the forward pass, as weight-only backends do."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.out_features = linear.out_features

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale).T


class NoBackwardLinear(Int8Linear):
    def forward(self, x):
        return super().forward(x.detach())


class SteppedLinear(Int8Linear):
    """Activations are rounded too: there is a gradient, and it is zero."""

    def forward(self, x):
        return super().forward((127 * x).round() / 127)


def exchanged(model, make):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            model.set_submodule(name, make(module))
    return model.eval()


def multiplied_out(linear):
    int8 = Int8Linear(linear)
    linear.weight.data = int8.weight * int8.scale
    return linear


def test_a_model_with_8_bit_weights_gets_the_maps_of_its_weights_multiplied_out(fitted_llama):
    int8, same = exchanged(tiny("llama"), Int8Linear), exchanged(tiny("llama"), multiplied_out)
    before = snapshot(int8)
    steering = fit(int8, sites=r".*\.(post_attention_layernorm|down_proj)")
    assert_untouched(int8, before)
    assert distance(steering, fit(same, sites=steering.sites)) < 1e-4
    assert 1e-4 < distance(fit(int8), fitted_llama) < 0.1


def test_a_model_with_8_bit_weights_may_have_its_checkpointing_on():
    """Whether gradients pass is asked of the layers, and cannot be asked inside a block that runs again in backward."""
    int8, checkpointing = (exchanged(tiny("llama"), Int8Linear) for _ in range(2))
    checkpointing.gradient_checkpointing_enable()
    assert np.array_equal(flat(fit(checkpointing)), flat(fit(int8)))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["detached", "rounded", "torch.ao"])
def test_quantised_layers_without_a_backward_pass_are_refused_not_ignored(kind):
    """The residual stream passes a gradient on beside them: a wrong one, without any error."""
    if kind == "torch.ao":
        if not hasattr(torch.ao.quantization, "quantize_dynamic") or not torch.backends.quantized.supported_engines:
            pytest.skip("this torch quantises nothing")
        model = torch.ao.quantization.quantize_dynamic(tiny("llama"), {nn.Linear}, dtype=torch.qint8)
    else:
        model = exchanged(tiny("llama"), NoBackwardLinear if kind == "detached" else SteppedLinear)
    hooks, seen = count_hooks(model), []
    with pytest.raises(ValueError, match=r"without a backward pass .*model\.layers\.0\.mlp\.gate_proj .* and \d+ more"):
        fit(model, callbacks=[seen.append])
    assert seen == []
    assert count_hooks(model) == hooks
    first = "model.layers.0.post_attention_layernorm"
    assert fit(model, sites=[first]).sites == [first], "what lies behind the last loss site does not matter"


class DeepSpeedEngine(nn.Module):
    """Stands for that of DeepSpeed, which cannot be had here: its call does more than the network's."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs, **kwargs):
        raise AssertionError("it trains")


def test_the_network_in_an_engine_of_deepspeed_is_fitted_by_its_own_names(fitted_llama):
    """As accelerate hands it out; with ZeRO up to stage 2 every process has whole weights."""
    engine = DeepSpeedEngine(tiny("llama"))
    steering = fit(engine)
    assert steering.sites == fitted_llama.sites
    assert np.array_equal(flat(steering), flat(fitted_llama))
    with steering.apply(engine):
        assert count_hooks(engine.module) > 0


def test_weights_that_zero_3_has_partitioned_are_refused():
    """DeepSpeed marks such parameters so, and leaves them empty between the passes of their modules."""
    model = tiny("llama")
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.ds_status = "NOT_AVAILABLE"
    with pytest.raises(ValueError, match="ZeRO-3 has partitioned 'model.layers.1.mlp.up_proj.weight'.*fit before"):
        lineas.fit(model, *TEXTS, tokenizer=WordTokenizer(), progress=False)
    steering = lineas.Steering({"model.norm": (np.ones(16), np.ones(16))})
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj is sharded over processes"):
        steering.merge(model)
    del weight.ds_status
    assert lineas.fit(model, *TEXTS, tokenizer=WordTokenizer(), progress=False, steps=1).history["loss"]
