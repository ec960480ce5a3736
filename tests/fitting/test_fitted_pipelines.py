"""Fits on pipelines: what counts, what is spared, what is left alone, and what cannot work."""

import copy
import operator

import numpy as np
import pytest
import torch
from conftest import assert_untouched, flat, snapshot
from pipelines import CASES, ONE_STEP, SRC, TGT, Plain, fit, fitted, pixart, shared, stable_diffusion

import lineas

GUIDANCE = {"num_inference_steps": 1, "guidance_scale": 5.0}


def assert_same_maps(a, b, tolerance=1e-3):
    assert list(a.sites) == list(b.sites)
    moved = flat(a) - flat(type(a)({site: (np.ones_like(a.weight(site)), 0 * a.bias(site)) for site in a.sites}))
    assert np.linalg.norm(moved) > 0
    assert np.linalg.norm(flat(a) - flat(b)) <= tolerance * np.linalg.norm(moved)


# -- what a fit finds --


@pytest.mark.parametrize("name", CASES)
def test_a_fit_brings_the_two_sets_nearer_at_every_kind_of_pipeline(name):
    history, info = fitted(name).history, fitted(name).info
    assert history["loss"][-1] < history["loss"][0]
    assert info["pipeline"]["class"] == type(shared(name)).__name__
    assert info["samples"] == [4, 4]


@pytest.mark.parametrize("name", ["StableDiffusion", "Flux", "Plain"])
def test_maps_do_not_depend_on_the_size_of_batches(name):
    assert_same_maps(fitted(name), fit(name, batch_size=3))


@pytest.mark.parametrize("name", ["StableDiffusion", "Flux", "Plain", "Doubled"])
def test_under_guidance_a_fit_sees_the_pass_with_the_prompt(name):
    call = {**CASES[name].call, **({"true_cfg_scale": 4.0, "negative_prompt": "fire"} if name == "Flux" else GUIDANCE)}
    assert_same_maps(fitted(name), fit(name, call=call))


def test_pictures_are_pooled_by_their_maximum_unless_told_and_texts_are_not():
    assert fitted("StableDiffusion").info["pooling"] == "max"
    assert fit("StableDiffusion", pooling="mean").info["pooling"] == "mean"
    assert fit("StableDiffusion", component="text_encoder").info["pooling"] == "mean"
    told = fit("StableDiffusion", recipe="published", steps=1, max_evaluations=None)
    assert told.info["pooling"] == "mean", "the published recipe's"


def test_the_samples_of_all_steps_count_in_one_map_a_site():
    call = {"num_inference_steps": 3, "guidance_scale": 0.0}
    responses = lineas.evaluation.responses
    pipe = shared("StableDiffusion")
    every = responses(pipe, SRC, "conv_norm_out", call=call, at="all")["conv_norm_out"]
    assert every.shape == (12, 8)
    for step in range(3):
        one = responses(pipe, SRC, "conv_norm_out", call=call, at=[step])["conv_norm_out"]
        np.testing.assert_allclose(one, every[4 * step : 4 * step + 4], rtol=1e-4, atol=1e-5)
    steering = fit("StableDiffusion", call=call, at="all")
    assert steering.info["samples"] == [12, 12]
    assert steering.info["pipeline"]["at"] == "all"
    assert steering.info["pipeline"]["steps"] == 3
    assert fit("StableDiffusion", call=call, at=[0, 2]).info["samples"] == [8, 8]


def test_a_fit_at_the_first_of_many_steps_warns_unless_it_is_meant(recwarn):
    many = {"num_inference_steps": 3, "guidance_scale": 0.0}
    with pytest.warns(UserWarning, match="the first of 3 steps counts, while maps act at all of them: expected a mo"):
        fit("StableDiffusion", call=many)
    recwarn.clear()
    fit("StableDiffusion", call=many, at="first")
    assert not [w for w in recwarn if "steps counts" in str(w.message)]


def test_sets_of_one_prompt_warn_that_rows_cannot_be_told_apart():
    with pytest.warns(
        UserWarning, match="two rows that differ give the same inputs to StableDiffusionPipeline and its"
    ):
        fit("StableDiffusion", src=SRC[:1] * 4, tgt=SRC[:1] * 4)
    with pytest.warns(UserWarning, match="src and tgt are the same inputs"):
        fit("StableDiffusion", src=SRC, tgt=SRC)


def test_rows_that_differ_in_their_seeds_alone_do_not_warn(recwarn):
    fit("DDPM")
    assert not [w for w in recwarn if "two rows" in str(w.message)]


# -- ways to run a network --


@pytest.mark.parametrize(("name", "make", "part"), [("StableDiffusion", stable_diffusion, "unet"),
                                                    ("PixArt", pixart, "transformer")])  # fmt: skip
def test_under_gradient_checkpointing_the_maps_are_the_same_and_blocks_run_again(name, make, part):
    runs = []
    for enabled in (False, True):
        pipe = make()
        network = getattr(pipe, part)
        if enabled:
            network.enable_gradient_checkpointing()
        count = [0]
        inner = network.mid_block.resnets[0].conv1 if part == "unet" else network.transformer_blocks[0].attn1.to_q
        inner.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        runs.append((fit(name, pipe), count[0]))
        assert network.is_gradient_checkpointing is enabled
    (plain, few), (checkpointed, many) = runs
    assert_same_maps(plain, checkpointed)
    assert many > few


def test_a_denoiser_with_adapters_is_fitted_at_the_sites_of_the_plain_one():
    from peft import LoraConfig

    pipe = stable_diffusion()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    sites = [site.name for site in lineas.find_sites(pipe)]
    assert sites == [site.name for site in lineas.find_sites(shared("StableDiffusion"))]
    pipe.unet.train()
    before = snapshot(pipe.unet)
    steering = fit("StableDiffusion", pipe)
    assert_untouched(pipe.unet, before)
    assert steering.info["adapters"] == ["default"]
    base = CASES["StableDiffusion"].pictures(pipe)
    with steering.apply(pipe):
        assert not torch.equal(CASES["StableDiffusion"].pictures(pipe), base)


def test_hooks_of_accelerate_slices_and_compilers_change_no_maps():
    from accelerate import cpu_offload
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    aligned, sliced, offloaded = stable_diffusion(), stable_diffusion(), stable_diffusion()
    add_hook_to_module(aligned.unet, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    sliced.enable_attention_slicing()
    cpu_offload(offloaded.unet, execution_device=torch.device("cpu"))
    for pipe in (aligned, sliced, offloaded):
        assert_same_maps(fitted("StableDiffusion"), fit("StableDiffusion", pipe))
    compiled = Plain()
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    assert_same_maps(fitted("Plain"), fit("Plain", compiled))


def test_what_offloads_models_is_told_that_a_call_is_over(monkeypatch):
    pipe, told = stable_diffusion(), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: told.append(True), raising=False)
    fit("StableDiffusion", pipe)
    assert told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fit_in_half_precision_goes_where_that_in_full_precision_goes(dtype):
    pipes = stable_diffusion().to(dtype), None  # a mean over pixels rounds less than their maximum
    both = [fit("StableDiffusion", pipe, pooling="mean") for pipe in pipes]
    a, b = (np.concatenate([one.bias(site) for site in one.sites]) for one in both)
    assert np.isfinite(a).all()
    assert a @ b > 0.8 * np.linalg.norm(a) * np.linalg.norm(b)


# -- what is left alone --


def traces(pipe):
    return {
        "parts": {name: snapshot(part) for name, part in vars(pipe).items() if isinstance(part, torch.nn.Module)},
        "bar": copy.copy(vars(pipe).get("_progress_bar_config")),
    }


def assert_as_before(pipe, before):
    for name, part in before["parts"].items():
        assert_untouched(getattr(pipe, name), part)
    assert vars(pipe).get("_progress_bar_config") == before["bar"]
    assert not lineas.attached(pipe)


class Interrupted:
    """A hook that ends the run at the k-th call of its module."""

    def __init__(self, error, calls):
        self.error, self.calls = error, calls

    def __call__(self, module, args, output):
        self.calls -= 1
        if not self.calls:
            raise self.error


@pytest.mark.parametrize("configured", [False, True])
def test_a_fit_leaves_nothing_behind(configured):
    pipe = stable_diffusion()
    if configured:
        pipe.set_progress_bar_config(desc="mine")
    pipe.unet.train()
    pipe.text_encoder.requires_grad_(False)
    before = traces(pipe)
    fit("StableDiffusion", pipe)
    assert_as_before(pipe, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(
    ("part", "calls"), [("text_encoder", 1), ("text_encoder", 3), ("unet.conv_in", 1), ("unet.conv_in", 6)]
)
def test_an_error_inside_the_pipeline_leaves_nothing_behind(error, part, calls):
    pipe = stable_diffusion()
    module = operator.attrgetter(part)(pipe)
    interruption = module.register_forward_hook(Interrupted(error("stop"), calls))
    pipe.unet.train()
    before = traces(pipe)
    with pytest.raises(error, match="stop"):
        fit("StableDiffusion", pipe, max_evaluations=9)
    assert interruption.id in module._forward_hooks
    assert_as_before(pipe, before)


def test_generators_of_the_user_draw_nothing():
    mine = torch.Generator().manual_seed(3)
    state = mine.get_state()
    first = fit("StableDiffusion", call={**ONE_STEP, "generator": mine})
    assert torch.equal(mine.get_state(), state)
    again = fit("StableDiffusion", call={**ONE_STEP, "generator": torch.Generator().manual_seed(3)})
    assert np.array_equal(flat(first), flat(again))
    other = fit("StableDiffusion", call={**ONE_STEP, "generator": torch.Generator().manual_seed(4)})
    assert not np.array_equal(flat(first), flat(other))


# -- what cannot work --

AT = 'at: expected "first", "all" or a list of steps, counted from 0; got '


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"src": "a cat"}, "src: expected a list, one for each row, got str"),
        ({"src": []}, "src: expected at least 2 samples, got 0"),
        ({"src": SRC[:1]}, "src: expected at least 2 samples, got 1"),
        ({"tgt": [1, 2]}, r"tgt: expected prompts \(str\), or dicts of a call's arguments, got 1"),
        ({"src": None}, "src: expected a list, one for each row, got NoneType"),
        ({"src": {}}, "src: expected what StableDiffusionPipeline takes for each row, got an empty dict"),
        ({"src": {"prompt": "a"}}, r"src\['prompt'\]: expected a list, one for each row, got str"),
        ({"src": {"prompts": SRC}}, "src: StableDiffusionPipeline takes no prompts; nearest names: prompt,"),
        ({"src": {"prompt": SRC, "negative_prompt": ["a"]}}, "src: expected as many of each, got {'prompt': 4, 'neg"),
        ({"src": {"prompt": SRC, "negative_prompt": TGT}}, "expected the same arguments in all sets, got "),
        ({"call": {"num_inference_step": 1}}, "call: StableDiffusionPipeline takes no num_inference_step; nearest"),
        ({"call": [1]}, "call: expected a dict of StableDiffusionPipeline's arguments, got list"),
        ({"call": {"prompt": "a"}}, "call: expected what is the same for all rows, got prompt, which each row has"),
        ({"call": {**ONE_STEP, "generator": "x"}}, "generator: expected a torch.Generator or a seed, got str"),
        ({"at": [1]}, r"at: expected steps of a call, which had 1, got \[1\]"),
        ({"at": [0, 5], "call": {**ONE_STEP, "num_inference_steps": 2}}, r"a call, which had 2, got \[5\]"),
        ({"at": "some"}, f"{AT}'some'"),
        ({"at": 0}, f"{AT}0"),
        ({"at": []}, r"at: expected steps, each once, got \[\]"),
        ({"at": [1, 1]}, r"at: expected steps, each once, got \[1, 1\]"),
        ({"tokenizer": object()}, "tokenizer: not for a pipeline, which has its own; see call="),
        ({"max_length": 4}, "max_length: not for a pipeline, which has its own; see call="),
        ({"component": "unett"}, "component: StableDiffusionPipeline has no network 'unett'; nearest names: unet"),
        ({"component": 3}, "component: expected the name of a network of the pipeline, got 3"),
        ({"component": "vae", "sites": "encoder.layers.0"}, "component: StableDiffusionPipeline did not run its vae"),
    ],
)
def test_what_cannot_work_is_said_before_any_step(options, message):
    with pytest.raises((TypeError, ValueError, LookupError), match=message):
        fit("StableDiffusion", **options)


@pytest.mark.parametrize("options", [{"call": {"a": 1}}, {"at": "all"}])
def test_arguments_of_pipelines_do_not_go_with_a_network(options):
    with pytest.raises(ValueError, match="(call|at): for a pipeline only, got a Network"):
        lineas.fit(shared("Plain").unet, torch.ones(3, 6, 4), torch.ones(3, 6, 4), **options)


def test_a_wrapper_that_passes_everything_on_takes_what_its_pipeline_takes():
    class Wrapper:
        def __init__(self, pipe):
            self.pipe, self.unet = pipe, pipe.unet

        def __call__(self, *args, **kwargs):
            return self.pipe(*args, **kwargs)

    wrapper = Wrapper(Plain())
    assert_same_maps(fitted("Plain"), lineas.fit(wrapper, SRC, TGT, call=ONE_STEP, max_evaluations=3, progress=False))
    with pytest.raises(TypeError, match="num_inference_step"):
        lineas.fit(wrapper, SRC, TGT, call={"num_inference_step": 1}, progress=False)


def test_a_class_that_passes_on_to_that_of_diffusers_takes_what_both_take():
    import diffusers

    class Own(diffusers.StableDiffusionPipeline):
        def __call__(self, *args, brightness=1.0, **kwargs):
            return super().__call__(*args, **kwargs)

    pipe = Own(**shared("StableDiffusion").components, requires_safety_checker=False)
    assert_same_maps(fitted("StableDiffusion"), fit("StableDiffusion", pipe, call={**ONE_STEP, "brightness": 2.0}))
    with pytest.raises(TypeError, match="call: Own takes no brightnes; nearest names: brightness"):
        fit("StableDiffusion", pipe, call={"brightnes": 1.0})
