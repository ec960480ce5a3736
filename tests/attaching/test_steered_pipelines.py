"""Maps on a network while its pipeline runs: strengths, rows, steps, halves under guidance."""

import copy

import pytest
import torch
from conftest import assert_untouched, count_hooks, snapshot
from pipelines import CASES, SRC, Doubled, fit, fitted, shared, stable_diffusion, strong_maps

import lineas
from lineas.network.pipelines import network_of

SD = CASES["StableDiffusion"]
TWO_STEPS = {"num_inference_steps": 2}
GUIDED = {
    "StableDiffusion": {"guidance_scale": 5.0, **TWO_STEPS},
    "StableDiffusionXL": {"guidance_scale": 5.0, **TWO_STEPS},
    "Flux": {"true_cfg_scale": 4.0, "negative_prompt": ["fire"] * 4, **TWO_STEPS},
    "StableDiffusion3": {"guidance_scale": 5.0, **TWO_STEPS},
    "PixArt": {"guidance_scale": 5.0, **TWO_STEPS},
    "QwenImage": {"true_cfg_scale": 4.0, "negative_prompt": ["fire"] * 4, **TWO_STEPS},
    "ZImage": {"guidance_scale": 5.0, **TWO_STEPS},
    "Img2Img": {"guidance_scale": 5.0, "strength": 0.8, **TWO_STEPS},
    "Inpaint": {"guidance_scale": 5.0, **TWO_STEPS},
    "ControlNet": {"guidance_scale": 5.0, **TWO_STEPS},
    "Plain": {"guidance_scale": 5.0, **TWO_STEPS},
    "Doubled": {"guidance_scale": 5.0, **TWO_STEPS},
}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.fixture(autouse=True)
def nothing_stays():
    """No test leaves a steering on what all share."""
    yield
    assert not any(count_hooks(shared(name).unet) for name in ("StableDiffusion", "Plain"))
    assert not any(lineas.attached(shared(name)) for name in CASES)


# -- strengths --


@pytest.mark.parametrize("name", CASES)
def test_a_fit_changes_the_pictures_and_strength_zero_is_the_base_to_the_bit(name):
    case, pipe, steering = CASES[name], shared(name), fitted(name)
    base = case.pictures(pipe)
    with steering.apply(pipe):
        assert not torch.equal(case.pictures(pipe), base)
    with steering.apply(pipe, 0):
        assert torch.equal(case.pictures(pipe), base)
    assert torch.equal(case.pictures(pipe), base)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_steering_makes_the_same_pictures(name, tmp_path):
    case, pipe, steering = CASES[name], shared(name), fitted(name)
    steering.save_pretrained(tmp_path)
    again = lineas.Steering.from_pretrained(tmp_path)
    with steering.apply(pipe):
        pictures = case.pictures(pipe)
    with again.apply(pipe):
        assert torch.equal(case.pictures(pipe), pictures)
    assert again.info["pipeline"]["class"] == type(pipe).__name__


def test_the_strength_changes_between_calls_and_goes_below_zero():
    pipe, maps = shared("StableDiffusion"), strong_maps("StableDiffusion")
    expected = {}
    for strength in (-0.5, 0.0, 1.0):
        with maps.scaled(strength).apply(pipe):
            expected[strength] = SD.pictures(pipe)
    assert not torch.equal(expected[-0.5], expected[0.0])
    handle = maps.attach(pipe)
    try:
        for strength in (1.0, -0.5, 0.0, 1.0):
            handle.set_strength(strength)
            close(SD.pictures(pipe), expected[strength])
    finally:
        handle.remove()


def test_several_at_once_add_up_site_by_site_and_each_has_its_strength():
    pipe = shared("StableDiffusion")
    first, second = strong_maps("StableDiffusion", 1), strong_maps("StableDiffusion", 2)
    with (second.scaled(0.5) @ first.scaled(-1.0)).apply(pipe):
        expected = SD.pictures(pipe)
    with first.apply(pipe, -1.0), second.apply(pipe, 0.5):
        assert len(lineas.attached(pipe)) == 2
        close(SD.pictures(pipe), expected)


def test_each_prompt_gets_the_steering_that_is_selected_for_it():
    pipe, maps = shared("StableDiffusion"), {key: strong_maps("StableDiffusion", k) for k, key in enumerate("ab")}
    expected = {None: SD.pictures(pipe)}
    for key, one in maps.items():
        with one.apply(pipe):
            expected[key] = SD.pictures(pipe)
    rows = ["b", None, "a", "b"]
    with lineas.attach(pipe, maps) as handle:
        for ids in (rows, rows[::-1], ["a"] * 4):
            handle.select(ids)
            close(SD.pictures(pipe), torch.stack([expected[key][k] for k, key in enumerate(ids)]))


# -- rows --


@pytest.mark.parametrize("call", [{}, {"num_images_per_prompt": 2}], ids=["one", "two"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", [name for name in GUIDED if name not in ("Plain", "Doubled")])
def test_each_prompt_has_its_strength_in_all_its_pictures_and_both_halves(name, guided, call):
    assert_own_strengths(name, (GUIDED[name] if guided else {}) | call)


@pytest.mark.parametrize("name", ["Plain", "Doubled"])
@pytest.mark.parametrize("call", [{}, GUIDED["Plain"]])
def test_each_prompt_of_a_pipeline_that_nobody_knows_has_its_strength(name, call):
    assert_own_strengths(name, call)


@pytest.mark.parametrize("name", ["DDPM", "Img2Img"])
def test_each_row_of_a_pipeline_without_prompts_or_with_images_has_its_strength(name):
    assert_own_strengths(name, TWO_STEPS)


def assert_own_strengths(name, call, **options):
    case, pipe, maps = CASES[name], shared(name), strong_maps(name, **options)
    base = case.pictures(pipe, **call).chunk(4)
    with maps.apply(pipe, **options):
        full = case.pictures(pipe, **call).chunk(4)
    with maps.apply(pipe, [0, 1, 0, 1], **options):
        got = case.pictures(pipe, **call).chunk(4)
    for k in (0, 2):
        close(got[k], base[k])
        close(got[k + 1], full[k + 1])
        assert (full[k] - base[k]).abs().max() > 1e-3 * base[k].abs().max()


@pytest.mark.parametrize(
    ("count", "call"), [(2, {}), (3, {}), (8, {}), (2, GUIDED["StableDiffusion"]), (8, GUIDED["StableDiffusion"]),
                        (2, {"num_images_per_prompt": 2}), (3, {"num_images_per_prompt": 2})],
)  # fmt: skip
def test_strengths_that_are_not_as_many_as_prompts_are_refused(count, call):
    pipe = shared("StableDiffusion")
    with (
        strong_maps("StableDiffusion").apply(pipe, [0.5] * count),
        pytest.raises(ValueError, match=f"strength: expected one for each .*prompt.*, got {count}"),
    ):
        SD.pictures(pipe, **call)


@pytest.mark.parametrize("name", ["StableDiffusion", "Flux"])
def test_one_prompt_and_one_noise_at_several_strengths(name):
    """As a sweep has it: rows that differ in nothing but their strength."""
    case, pipe, maps = CASES[name], shared(name), strong_maps(name)
    strengths = [0.0, 0.5, 1.0, -1.0]

    def pictures(count=4):
        generators = [torch.Generator().manual_seed(3) for _ in range(count)]
        given = {**case.call, **GUIDED[name], "prompt": SRC[:1] * count, "generator": generators}
        if "negative_prompt" in given:
            given["negative_prompt"] = ["fire"] * count
        return pipe(**given, output_type="latent").images

    with maps.apply(pipe, strengths):
        got = pictures()
    for k, strength in enumerate(strengths):
        with maps.apply(pipe, strength):
            close(got[k : k + 1], pictures(1))


# -- steps --


def by_hand(pipe, maps, strengths, call):
    """Pictures with the strength set before each step."""
    handle = maps.attach(pipe, strengths[0])

    def after(pipe, step, timestep, tensors):
        if step + 1 < len(strengths):
            handle.set_strength(strengths[step + 1])
        return tensors

    try:
        return SD.pictures(pipe, callback_on_step_end=after, **call)
    finally:
        handle.remove()


@pytest.mark.parametrize("guidance", [0.0, 5.0])
@pytest.mark.parametrize(
    ("at", "strengths"),
    [
        ("all", [1, 1, 1, 1]), ("first", [1, 0, 0, 0]), ([0, 3], [1, 0, 0, 1]), (slice(2, None), [0, 0, 1, 1]),
        (slice(None, 1), [1, 0, 0, 0]), (slice(1, 3), [0, 1, 1, 0]), ({0: 0.5, 2: -1.0}, [0.5, 0, -1, 0]),
        (range(1, 2), [0, 1, 0, 0]),
    ],
)  # fmt: skip
def test_steps_are_steered_as_told_in_every_call(at, strengths, guidance):
    pipe, maps = shared("StableDiffusion"), strong_maps("StableDiffusion")
    call = {"num_inference_steps": 4, "guidance_scale": guidance}
    expected = by_hand(pipe, maps, strengths, call)
    with maps.apply(pipe, at=at):
        close(SD.pictures(pipe, **call), expected)
        close(SD.pictures(pipe, **call), expected)


def test_a_strength_for_each_step_multiplies_that_of_each_row():
    pipe, maps = shared("StableDiffusion"), strong_maps("StableDiffusion")
    call = {"num_inference_steps": 2, "guidance_scale": 5.0}
    rows = [0.0, 1.0, -1.0, 0.5]
    expected = by_hand(pipe, maps, [[0.5 * s for s in rows], rows], call)
    with maps.apply(pipe, rows, at={0: 0.5, 1: 1.0}):
        close(SD.pictures(pipe, **call), expected)


@pytest.mark.parametrize("name", ["Flux", "Plain"])
def test_both_passes_of_a_step_under_guidance_are_of_that_step(name):
    case, pipe, maps = CASES[name], shared(name), strong_maps(name)
    passes = []
    for at in ("all", "first"):
        found = []
        site = lineas.find_sites(pipe)[0].name
        with maps.apply(pipe, at=at):
            hook = (
                network_of(pipe)
                .get_submodule(site)
                .register_forward_hook(lambda module, args, output, found=found: found.append(output))
            )
            try:
                case.pictures(pipe, **GUIDED[name])
            finally:
                hook.remove()
        passes.append(found)
    firsts = [item[0] if isinstance(item, tuple) else item for item in passes[0]]
    others = [item[0] if isinstance(item, tuple) else item for item in passes[1]]
    assert len(firsts) == 4
    assert torch.equal(firsts[0], others[0])
    assert torch.equal(firsts[1], others[1])
    assert not torch.equal(firsts[2], others[2])


def test_steps_beyond_those_of_a_call_warn():
    pipe, maps = shared("StableDiffusion"), strong_maps("StableDiffusion")
    base = SD.pictures(pipe, **TWO_STEPS)
    with maps.apply(pipe, at=[5]), pytest.warns(UserWarning, match="at: expected steps of a call, got none of its 2"):
        assert torch.equal(SD.pictures(pipe, **TWO_STEPS), base)


# -- guidance --


def steered_by_hand(name, maps, which, call, pipe=None):
    """Pictures with the maps on those rows of a pass that `which` picks of its number and its rows."""
    pipe = pipe or shared(name)
    network, passes = network_of(pipe), [-1]
    hooks = [network.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))]

    def put(site):
        weight, bias = (torch.tensor(part(site)) for part in (maps.weight, maps.bias))

        def hook(module, args, output):
            h = output[0] if isinstance(output, tuple) else output
            shape = (1, -1, 1, 1) if h.ndim == 4 else (-1,)
            mapped = h.clone()
            rows = which(passes[0], len(h))
            mapped[rows] = h[rows] * weight.view(shape) + bias.view(shape)
            return (mapped, *output[1:]) if isinstance(output, tuple) else mapped

        return network.get_submodule(site).register_forward_hook(hook)

    hooks += [put(site) for site in maps.sites]
    try:
        return CASES[name].pictures(pipe, **call)
    finally:
        for hook in hooks:
            hook.remove()


HALVES = {
    "StableDiffusion": lambda number, rows: slice(rows // 2, rows),
    "StableDiffusionXL": lambda number, rows: slice(rows // 2, rows),
    "StableDiffusion3": lambda number, rows: slice(rows // 2, rows),
    "PixArt": lambda number, rows: slice(rows // 2, rows),
    "Flux": lambda number, rows: slice(0, 0 if number % 2 else rows),
}


@pytest.mark.parametrize("name", HALVES)
def test_under_guidance_the_half_with_the_prompt_can_be_steered_alone(name):
    pipe, maps = shared(name), strong_maps(name)
    expected = steered_by_hand(name, maps, HALVES[name], GUIDED[name])
    for _ in range(2):
        with maps.apply(pipe, guided="prompt"):
            close(CASES[name].pictures(pipe, **GUIDED[name]), expected)
    both = steered_by_hand(name, maps, lambda number, rows: slice(0, rows), GUIDED[name])
    with maps.apply(pipe):
        close(CASES[name].pictures(pipe, **GUIDED[name]), both)


@pytest.mark.parametrize("name", [*HALVES, "DDPM"])
def test_without_guidance_the_half_with_the_prompt_is_all_there_is(name):
    pipe, maps = shared(name), strong_maps(name)
    with maps.apply(pipe):
        expected = CASES[name].pictures(pipe)
    with maps.apply(pipe, guided="prompt"):
        close(CASES[name].pictures(pipe), expected)


def test_strengths_of_rows_go_with_the_half_that_is_steered():
    pipe, maps = shared("StableDiffusion"), strong_maps("StableDiffusion")
    call = {**GUIDED["StableDiffusion"], "num_images_per_prompt": 2}
    expected = steered_by_hand("StableDiffusion", maps, lambda number, rows: slice(rows // 2 + 2, rows // 2 + 6), call)
    with maps.apply(pipe, [0, 1, 1, 0], guided="prompt"):
        close(SD.pictures(pipe, **call), expected)


def test_a_class_that_nobody_knows_is_guided_as_its_fit_saw():
    pipe, call = shared("Doubled"), GUIDED["Doubled"]
    steering = fit("Doubled", call=call, at="first")
    expected = steered_by_hand("Doubled", steering, lambda number, rows: slice(0, rows // 2), call)
    with steering.apply(pipe, guided="prompt"):
        close(CASES["Doubled"].pictures(pipe, **call), expected)
    with steering.apply(pipe):
        assert (CASES["Doubled"].pictures(pipe, **call) - expected).norm() > 1e-3 * expected.norm()
    for name in ("Doubled", "Plain"):
        said = f'guided: expected "both", since nothing tells which half of the passes of {name} has'
        with pytest.raises(ValueError, match=said):
            fitted(name).attach(shared(name), guided="prompt")


def test_a_scheduler_of_two_passes_a_step_steers_the_half_with_the_prompt_in_both():
    import diffusers

    pipe, maps = copy.copy(shared("StableDiffusion")), strong_maps("StableDiffusion")
    pipe.scheduler = diffusers.HeunDiscreteScheduler()
    expected = steered_by_hand("StableDiffusion", maps, HALVES["StableDiffusion"], GUIDED["StableDiffusion"], pipe)
    with maps.apply(pipe, guided="prompt"):
        close(SD.pictures(pipe, **GUIDED["StableDiffusion"]), expected)


# -- text encoders --


@pytest.mark.parametrize(
    ("name", "component"), [("StableDiffusion", "text_encoder"), ("Flux", "text_encoder_2"), ("PixArt", "text_encoder")]
)
def test_maps_on_a_text_encoder_change_the_pictures_prompt_by_prompt(name, component):
    for call in ({}, GUIDED[name]):
        assert_own_strengths(name, call, component=component)


def test_a_fit_of_a_text_encoder_is_attached_to_it():
    pipe, steering = shared("StableDiffusion"), fit("StableDiffusion", component="text_encoder", steps=3)
    base = SD.pictures(pipe)
    with steering.apply(pipe):
        assert count_hooks(pipe.text_encoder)
        assert not torch.equal(SD.pictures(pipe), base)
    with steering.apply(pipe), fitted("StableDiffusion").apply(pipe):
        assert len(lineas.attached(pipe)) == 2
    lineas.detach(pipe)
    assert not lineas.attached(pipe)


# -- what else may be done to a pipeline --


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["wrapped", "inside"])
def test_a_compiled_denoiser_is_steered(how, when):
    case, pipe, maps = CASES["Doubled"], Doubled(), strong_maps("Doubled")
    call, options = GUIDED["Doubled"], {"strength": [0.0, 1.0, -1.0, 0.5], "at": {0: 0.5, 1: 1.0}}
    base = case.pictures(shared("Doubled"), **call)
    with maps.apply(shared("Doubled"), **options):
        expected = case.pictures(shared("Doubled"), **call)
    torch._dynamo.reset()

    def compiled():
        if how == "wrapped":
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        else:
            pipe.unet.compile(backend="eager")

    if when == "before":
        compiled()
        close(case.pictures(pipe, **call), base)
    handle = maps.attach(pipe, **options)
    if when == "after":
        compiled()
    close(case.pictures(pipe, **call), expected)
    handle.remove()
    close(case.pictures(pipe, **call), base)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_steered_as_full_precision_is(dtype):
    pipe, maps = stable_diffusion().to(dtype), strong_maps("StableDiffusion")
    with maps.apply(shared("StableDiffusion")):
        expected = SD.pictures(shared("StableDiffusion"))
    base = SD.pictures(pipe)
    with maps.apply(pipe):
        got = SD.pictures(pipe)
    assert got.dtype == dtype
    assert (got.float() - expected).norm() < 0.1 * expected.norm()
    assert torch.equal(SD.pictures(pipe), base)


def test_attention_slices_and_hooks_of_accelerate_leave_steering_alone():
    from accelerate import cpu_offload
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    maps = strong_maps("StableDiffusion")
    with maps.apply(shared("StableDiffusion")):
        expected = SD.pictures(shared("StableDiffusion"))
    sliced, aligned, offloaded = stable_diffusion(), stable_diffusion(), stable_diffusion()
    sliced.enable_attention_slicing()
    add_hook_to_module(aligned.unet, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    cpu_offload(offloaded.unet, execution_device=torch.device("cpu"))
    for pipe in (sliced, aligned, offloaded):
        base = SD.pictures(pipe)
        with maps.apply(pipe):
            close(SD.pictures(pipe), expected)
        assert torch.equal(SD.pictures(pipe), base)


def test_a_copied_pipeline_is_steered_by_handles_of_its_own():
    pipe, maps = stable_diffusion(), strong_maps("StableDiffusion")
    base = SD.pictures(pipe, **TWO_STEPS)
    handle = maps.attach(pipe, [0, 1, 1, 0], at="first")
    steered = SD.pictures(pipe, **TWO_STEPS)
    twin = copy.deepcopy(pipe)
    assert torch.equal(SD.pictures(twin, **TWO_STEPS), steered)
    handle.remove()
    assert torch.equal(SD.pictures(pipe, **TWO_STEPS), base)
    assert torch.equal(SD.pictures(twin, **TWO_STEPS), steered)
    lineas.detach(twin)
    assert torch.equal(SD.pictures(twin, **TWO_STEPS), base)


def test_whatever_ends_a_call_leaves_nothing_behind():
    pipe, maps = shared("StableDiffusion"), strong_maps("StableDiffusion")
    before = snapshot(pipe.unet)

    def stop(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), maps.apply(pipe, [0, 1, 0, 1], at=[0], guided="prompt"):
        SD.pictures(pipe, callback_on_step_end=stop, **GUIDED["StableDiffusion"])
    assert_untouched(pipe.unet, before)


# -- what cannot work --

AT = 'at: expected "all", "first", a list or slice of steps, or a dict of step -> strength; got '


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "some"}, f"{AT}'some'"),
        ({"at": 3}, f"{AT}3"),
        ({"at": []}, rf"{AT}\[\]"),
        ({"at": {}}, f"{AT}{{}}"),
        ({"at": [-1]}, "at: expected a whole number of at least 0, got -1"),
        ({"at": slice(-1, None)}, "at: expected a whole number of at least 0, got -1"),
        ({"at": {0: "a"}}, r"at\[0\]: expected a number, got str"),
        ({"guided": "x"}, "guided: expected one of 'both', 'prompt'; got 'x'"),
        ({"position": "last"}, "position, count: expected a language model, got a StableDiffusionPipeline"),
        ({"count": True}, "position, count: expected a language model, got a StableDiffusionPipeline"),
        ({"component": "text_encoder"}, "component: expected the network that was fitted, 'unet', got 'text_encoder'"),
        ({"component": "nett"}, "component: expected the network that was fitted, 'unet', got 'nett'"),
        ({"strength": [1, "a"]}, "strength: expected a number, or one for each row, got str"),
    ],
)
def test_what_cannot_be_attached_to_a_pipeline_says_so_and_leaves_no_hook(options, message):
    pipe = shared("StableDiffusion")
    with pytest.raises((TypeError, ValueError), match=message):
        fitted("StableDiffusion").attach(pipe, **options)
    assert not lineas.attached(pipe)
    assert not count_hooks(pipe.unet)


def test_steerings_of_two_networks_are_attached_apart():
    one, other = fitted("StableDiffusion"), fit("StableDiffusion", component="text_encoder")
    with pytest.raises(ValueError, match="steerings: expected maps of one network .*'unet' and 'text_encoder'; attach"):
        lineas.attach(shared("StableDiffusion"), [one, other])
    with pytest.raises(ValueError, match="guided: expected \"both\" for 'text_encoder'; only a denoiser is guided"):
        other.attach(shared("StableDiffusion"), guided="prompt")
    with pytest.raises(ValueError, match="at: expected a network that takes a timestep, got CLIPTextModel"):
        other.attach(shared("StableDiffusion"), at="first")
    with pytest.raises(LookupError, match="component: FluxPipeline has no network 'unet'; "):
        one.attach(shared("Flux"))
    assert not lineas.attached(shared("StableDiffusion"))


@pytest.mark.parametrize("options", [{"at": "first"}, {"guided": "prompt"}])
def test_steps_and_halves_are_of_pipelines_only(options):
    with pytest.raises(ValueError, match="at, guided: for a pipeline only, got a network"):
        fitted("StableDiffusion").attach(shared("StableDiffusion").unet, **options)
