"""Models with adapters of PEFT: one steering for them, for their base and for what they are merged into."""

import copy
import warnings

import numpy as np
import pytest
import torch
from conftest import IDS, TEXTS, WordTokenizer, assert_untouched, flat, normal, random_maps, snapshot, tiny
from network_cases import fit, pair, seeded, t5
from torch import nn

import lineas
from lineas.network.adapters import effective_weights
from lineas.network.identity import weights_digest

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
NORMS = [f"model.layers.{k}.post_attention_layernorm" for k in range(3)]
QUERIES = [f"model.layers.{k}.self_attn.q_proj" for k in range(3)]
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
WRONG = "expected the weights that the steering was fitted on"


def trained(model, seed=1):
    """As if its adapters had been trained: fresh ones change nothing."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "ia3_", "hada_", "modules_to_save")):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def config(**options):
    kind = options.pop("kind", peft.LoraConfig)
    sizes = {"r": 2} if kind is not peft.IA3Config else {}
    return kind(**{"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | sizes | options)


def adapted(**options):
    return trained(peft.get_peft_model(tiny("llama"), config(**options)))


def merged(model):
    return copy.deepcopy(model).merge_and_unload()


def steered(steering, model, silently=True, **options):
    with warnings.catch_warnings():
        if silently:
            warnings.simplefilter("error")
        handle = steering.attach(model, **options)
    with handle, torch.no_grad():
        return model(IDS, attention_mask=MASK).logits


@pytest.fixture(scope="module")
def fitted():
    return fit(adapted(), sites=[*NORMS, *QUERIES])


def test_names_are_those_of_the_network_itself():
    model = adapted()
    assert lineas.find_sites(model) == lineas.find_sites(tiny("llama"))
    (query,) = lineas.find_sites(model, r".*layers\.0\.self_attn\.q_proj")
    assert query == lineas.find_sites(tiny("llama"), r".*layers\.0\.self_attn\.q_proj")[0]
    inside = [site.name for site in lineas.find_sites(model, r".*layers\.0.*lora_A\.default")]
    assert inside == [f"model.layers.0.{part}.lora_A.default" for part in ("self_attn.q_proj", "mlp.down_proj")]


def test_a_fit_leaves_adapters_as_they_were_and_gets_the_maps_of_the_merged_model(fitted):
    model = adapted()
    before = snapshot(model)
    steering = fit(model)
    assert_untouched(model, before)
    assert steering.sites == NORMS
    np.testing.assert_allclose(flat(steering), flat(fit(merged(model))), atol=1e-4)
    assert np.abs(flat(steering) - flat(fit(tiny("llama")))).max() > 1e-2
    assert steering.info["adapters"] == ["default"]
    assert steering.info["model_class"] == "LlamaForCausalLM"
    assert fitted.sites[:2] == [QUERIES[0], NORMS[0]]


def test_one_steering_acts_alike_on_the_model_with_adapters_and_with_them_merged(fitted):
    model = adapted()
    said = steered(fitted, model)
    torch.testing.assert_close(steered(fitted, merged(model)), said, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steered(fitted, model.get_base_model()), said)
    with torch.no_grad():
        assert (model(IDS, attention_mask=MASK).logits - said).abs().max() > 1e-2


def test_without_its_adapters_a_steering_acts_and_a_warning_says_what_is_missing(fitted):
    message = f"{WRONG}, those of LlamaForCausalLM with adapters default; got a model with others: other adapters"
    base = tiny("llama")
    with pytest.warns(UserWarning, match=message):
        said = steered(fitted, base, silently=False)
    model = adapted()
    with model.disable_adapter(), pytest.warns(UserWarning, match=message):
        torch.testing.assert_close(steered(fitted, model, silently=False), said)
    with pytest.warns(UserWarning, match=message):
        torch.testing.assert_close(steered(fitted, model.unload(), silently=False), said)
    assert torch.equal(steered(fitted, base, strict=False), said)


def test_a_steering_of_the_base_is_silent_where_adapters_change_nothing(fitted_llama):
    fresh = peft.get_peft_model(tiny("llama"), config())
    torch.testing.assert_close(steered(fitted_llama, fresh), steered(fitted_llama, tiny("llama")))
    model = adapted()
    with model.disable_adapter():
        torch.testing.assert_close(steered(fitted_llama, model), steered(fitted_llama, tiny("llama")))
    message = f"{WRONG}, those of LlamaForCausalLM; got a model with adapters default with others: other adapters"
    with pytest.warns(UserWarning, match=message):
        steered(fitted_llama, model, silently=False)


def test_of_several_adapters_the_one_that_is_on_counts():
    model = adapted()
    model.add_adapter("second", config())
    trained(model, seed=2)
    model.set_adapter("second")
    steering = fit(model)
    assert steering.info["adapters"] == ["second"]
    torch.testing.assert_close(steered(steering, merged(model)), steered(steering, model), atol=1e-4, rtol=1e-4)
    model.set_adapter("default")
    with pytest.warns(UserWarning, match="with adapters second; got a model with adapters default with others"):
        steered(steering, model, silently=False)


def test_names_with_what_peft_puts_before_them_lead_to_the_same_modules(fitted, tmp_path):
    """As files have them that were written when a fit knew nothing of PEFT."""
    old = lineas.Steering(
        {f"base_model.model.{name}": (fitted.weight(name), fitted.bias(name)) for name in fitted.sites}
    )
    old.save_pretrained(tmp_path)
    old, model = lineas.Steering.from_pretrained(tmp_path), adapted()
    for net in (model, tiny("llama"), merged(model)):
        assert torch.equal(steered(old, net), steered(fitted, net, strict=False))


@pytest.mark.parametrize("path", ["self_attn.q_proj", "mlp.down_proj"])
def test_a_layer_with_an_adapter_responds_with_what_the_adapter_adds(path):
    model, site = adapted(), f"model.layers.0.{path}"
    options = {"tokenizer": WordTokenizer()}
    found = lineas.evaluation.responses(model, TEXTS[0], [site], **options)[site]
    expected = lineas.evaluation.responses(merged(model), TEXTS[0], [site], **options)[site]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    inner = f"{site}.base_layer"  # before the adapter adds to it
    assert np.abs(lineas.evaluation.responses(model, TEXTS[0], [inner], **options)[inner] - found).max() > 1e-2


def test_merge_takes_the_model_with_adapters_merged_and_refuses_the_one_with_adapters():
    model = adapted()
    steering = random_maps(model)
    with pytest.raises(ValueError, match=r"model: it has adapters of PEFT; .* merge_and_unload\(\) returns"):
        steering.merge(model)
    plain = merged(model)
    result = steering.merge(plain)
    assert not any("lora" in name for name, _ in result.named_modules())
    with torch.no_grad():
        torch.testing.assert_close(
            result(IDS, attention_mask=MASK).logits, steered(steering, model), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("strength", [1.0, [0.0, 0.5, 2.0]], ids=["one", "by row"])
@pytest.mark.parametrize("position", ["all", "last", "generated"])
def test_generation_under_positions_and_strengths_by_row_is_that_of_the_merged_model(position, strength):
    model, written = adapted(), []
    steering = random_maps(model, size=0.5)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for net in (model, merged(model)):
        with steering.apply(net, strength, position=position, count=True) as handle:
            tokens = net.generate(input_ids=IDS, attention_mask=MASK, **options)
            logits = net(IDS, attention_mask=MASK).logits
        written.append((tokens, logits, handle.coverage()))
    assert torch.equal(written[0][0], written[1][0])
    torch.testing.assert_close(written[0][1], written[1][1], atol=1e-4, rtol=1e-4)
    assert written[0][2] == written[1][2]


KINDS = {
    "LoRA": {}, "DoRA": {"use_dora": True}, "rank-stabilised": {"use_rslora": True},
    "with a layer of its own": {"modules_to_save": ["lm_head"]}, "LoHa": {"kind": "LoHaConfig"},
    "IA3": {"kind": "IA3Config", "feedforward_modules": ["down_proj"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_count_as_merged_whatever_the_kind_of_adapter(kind):
    options = {key: getattr(peft, value) if key == "kind" else value for key, value in KINDS[kind].items()}
    model = adapted(**options)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert weights_digest(model) == weights_digest(merged(model)) != weights_digest(tiny("llama"))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    steering = fit(model)
    assert steering.sites == NORMS
    torch.testing.assert_close(steered(steering, merged(model)), steered(steering, model), atol=1e-3, rtol=1e-3)


def test_without_adapters_weights_are_the_models_own(llama):
    assert [id(w) for w in effective_weights(llama)] == [id(w) for w in llama.parameters()]


def test_adapters_are_fitted_with_the_models_checkpointing_compiled_and_offloaded():
    from accelerate import cpu_offload

    expected, checkpointing, offloaded = flat(fit(adapted())), adapted(), adapted()
    checkpointing.gradient_checkpointing_enable()
    cpu_offload(offloaded.get_base_model(), execution_device=torch.device("cpu"))
    for model in (checkpointing.train(), torch.compile(adapted(), backend="eager"), offloaded):
        assert np.array_equal(flat(fit(model)), expected)


def test_weights_are_told_while_a_steering_is_on(fitted):
    model = adapted()
    expected = weights_digest(model)
    with fitted.apply(model):
        assert weights_digest(model) == expected
        assert len(lineas.attached(model)) == 1


def test_a_convolution_with_an_adapter_has_its_channels_in_front():
    net = seeded(lambda: nn.Sequential(nn.Conv1d(3, 5, 1), nn.ReLU(), nn.Conv1d(5, 5, 1)))
    model = trained(peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"])))
    sides = normal(12, 3, 5), normal(12, 3, 5, seed=1, shift=1.0)
    steering = fit(model, sides=sides, sites=["0", "2"])
    np.testing.assert_allclose(flat(steering), flat(fit(merged(model), sides=sides, sites=["0", "2"])), atol=1e-4)


def test_adapters_that_transformers_put_in_itself_are_no_part_of_names_either():
    model = tiny("llama")
    model.add_adapter(config())
    trained(model)
    assert fit(model).sites == NORMS
    assert fit(model, sites=QUERIES).info["adapters"] == ["default"]


def test_both_halves_of_an_encoder_decoder_have_adapters():
    sides = pair(), pair(seed=1)
    model = peft.get_peft_model(seeded(t5), config(target_modules=["q", "wi"], task_type="SEQ_2_SEQ_LM"))
    steering = fit(trained(model), sides=sides)
    assert steering.sites == [site.name for site in lineas.find_sites(seeded(t5))]
    np.testing.assert_allclose(flat(steering), flat(fit(merged(model), sides=sides)), atol=1e-4)


def test_prompts_that_were_learned_are_in_front_of_every_sample_and_have_no_mask():
    model = peft.get_peft_model(tiny("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert [site.name for site in lineas.find_sites(model)] == NORMS
    with pytest.raises(ValueError, match=r"'model\.layers\.0.*has 10 tokens, attention_mask has \(2, 7\)"):
        fit(model.eval())
    assert random_maps(tiny("llama")).attach(model).active


def test_a_wrapper_that_passes_on_what_it_is_given_takes_what_the_model_takes():
    """PEFT's model of no task has forward(*args, **kwargs): a mask in the second place is a mask all the same."""
    model = adapted(task_type=None)
    ids, mask = IDS.repeat(4, 1), MASK.repeat(4, 1)
    named = lineas.evaluation.responses(model, {"input_ids": ids, "attention_mask": mask}, NORMS)
    by_place = lineas.evaluation.responses(model, torch.utils.data.TensorDataset(ids, mask), NORMS)
    for name in NORMS:
        np.testing.assert_array_equal(by_place[name], named[name])
    with random_maps(tiny("llama"), size=0.5).apply(model, position="last"), torch.no_grad():
        assert torch.equal(model(IDS, MASK).logits, model(input_ids=IDS, attention_mask=MASK).logits)
