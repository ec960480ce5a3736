"""Finding sites and hooking them."""

import pytest
import torch
from conftest import LANGUAGE_MODELS, WordTokenizer, count_hooks, normal, random_maps, tiny

import lineas
from lineas.core.text import nearest
from lineas.network.hooks import channel_dim, hooked, replace_tensor, tensor_of
from lineas.network.sites import Site


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", "model.layers.{}.post_attention_layernorm"),
        ("qwen2", "model.layers.{}.post_attention_layernorm"),
        ("gemma2", "model.layers.{}.pre_feedforward_layernorm"),
        ("gpt2", "transformer.h.{}.ln_2"),
        ("bert", "encoder.layer.{}.attention.output.LayerNorm"),
    ],
)
def test_default_sites_are_the_norms_that_feed_each_mlp(kind, expected):
    found = lineas.find_sites(tiny(kind))
    assert [site.name for site in found] == [expected.format(k) for k in range(3)]
    assert {site.units for site in found} == {16}


@pytest.mark.parametrize("kind", [*LANGUAGE_MODELS, "bert"])
def test_default_sites_feed_the_mlp_in_fact(kind):
    """The tensor that a default site puts out is the very one that the block's MLP takes in."""
    model = tiny(kind)
    outputs, mlp_inputs = [], []
    for site in lineas.find_sites(model):
        model.get_submodule(site.name).register_forward_hook(lambda m, a, o: outputs.append(o))
    for name, module in model.named_modules():
        if name.endswith((".mlp", ".intermediate")):
            module.register_forward_pre_hook(lambda m, args: mlp_inputs.append(args[0]))
    model(torch.tensor([[3, 4, 5]]))
    assert len(outputs) == len(mlp_inputs) == 3
    assert all(a is b for a, b in zip(outputs, mlp_inputs, strict=True))


def test_a_model_without_such_norms_says_so_and_lists_candidates(mlp):
    with pytest.raises(LookupError, match=r"no default: pass sites=.*first \(1 Linear\)"):
        lineas.find_sites(mlp)


def test_a_pattern_must_match_the_whole_path(llama):
    assert len(lineas.find_sites(llama, r"model\.layers\.[01]\.mlp")) == 2
    with pytest.raises(LookupError, match="nearest names: .*mlp"):
        lineas.find_sites(llama, "layers.0.mlp")


def test_a_list_keeps_its_order_and_takes_sites_too(llama):
    names = ["model.layers.2.mlp", "model.layers.0.mlp"]
    found = lineas.find_sites(llama, names)
    assert [site.name for site in found] == names
    assert lineas.find_sites(llama, found) == found


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ("model.(layers", ValueError, "not a regular expression"),
        ([], ValueError, "empty list"),
        (["model.norm", "model.norm"], ValueError, "expected each site once"),
        (["model.norm", "model.norm:0"], ValueError, "names the same output"),
        (["model.layers.0.mpl"], LookupError, r"nearest names: .*model\.layers\.0\.mlp"),
        ([""], LookupError, "the model itself"),
        ([3], TypeError, "got int 3"),
    ],
)
def test_sites_that_cannot_be_are_refused(llama, sites, error, message):
    with pytest.raises(error, match=message):
        lineas.find_sites(llama, sites)


def test_two_names_of_one_module_are_refused():
    shared = torch.nn.Linear(3, 3)
    net = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    with pytest.raises(ValueError, match="names the same output as '0'"):
        lineas.find_sites(net, ["0", "2"])


def test_units_are_told_before_any_forward_pass():
    gpt2 = tiny("gpt2")
    assert lineas.find_sites(gpt2, r".*\.mlp\.c_fc")[0].units == 64
    assert lineas.find_sites(gpt2, r".*\.mlp")[0].units is None


def test_find_sites_changes_nothing(llama):
    before = count_hooks(llama)
    lineas.find_sites(llama)
    assert count_hooks(llama) == before


@pytest.mark.parametrize("container", [tuple, list])
def test_an_item_of_a_tuple_is_read_and_replaced_in_a_new_one(container):
    a, b = normal(2, 3), normal(2, 4)
    output = container([a, b])
    site = Site("x:1", None, "Any")
    assert tensor_of(site, output) is b
    replaced = replace_tensor(site, output, b + 1)
    assert type(replaced) is container
    assert replaced[0] is a
    assert torch.equal(replaced[1], b + 1)
    assert output[1] is b


def test_a_named_tuple_stays_one():
    output = torch.return_types.max((normal(2, 3), torch.zeros(2)))
    assert type(replace_tensor(Site("x", None, "Any"), output, normal(2, 3, seed=1))) is torch.return_types.max


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("text", "expected a float tensor"),
        (torch.zeros(3, dtype=torch.long), "got .*int64"),
        (torch.zeros(3), r"got \(3,\)"),
        ((normal(2, 3),), "returned 1 items, there is no 4"),
    ],
)
def test_an_output_that_is_no_activation_is_refused(output, message):
    with pytest.raises((TypeError, LookupError), match=message):
        tensor_of(Site("x:4" if isinstance(output, tuple) else "x", None, "Any"), output)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (torch.nn.Conv2d(1, 1, 1), (2, 5, 4, 4), 1),
        (torch.nn.Conv1d(1, 1, 1), (2, 5, 4), 1),
        (torch.nn.BatchNorm1d(5), (2, 5), 1),
        (torch.nn.ReLU(), (2, 5, 4, 4), 1),
        (torch.nn.LayerNorm(5), (2, 4, 4, 5), -1),
        (torch.nn.Linear(5, 5), (2, 4, 5), -1),
        (torch.nn.ReLU(), (2, 4, 5), -1),
        (torch.nn.ReLU(), (2, 5), -1),
    ],
)
def test_channels_are_where_the_module_puts_them(module, shape, expected):
    assert channel_dim(module, torch.zeros(shape)) == expected


def test_hooks_are_gone_after_an_exception_inside(mlp):
    (site,) = lineas.find_sites(mlp, "first")
    with pytest.raises(RuntimeError), hooked(mlp, {site: lambda module, h: h + 1}):
        assert count_hooks(mlp) == 1
        raise RuntimeError
    assert count_hooks(mlp) == 0


# -- what is no network --


class Pipeline:
    """As those of transformers and diffusers: no module, but it holds some."""

    def __init__(self, **parts):
        self.__dict__.update(parts, tokenizer=WordTokenizer(), name="pipeline")


def entry_points():
    texts, maps = ["a b", "c d"], random_maps(tiny("llama"))
    measured = {"texts": texts, "prompts": (), "progress": False}
    return {
        "fit": lambda model: lineas.fit(model, texts, texts, progress=False),
        "find_sites": lineas.find_sites,
        "lineas.attach": lambda model: lineas.attach(model, [maps], 0),
        "attach": maps.attach,
        "apply": lambda model: maps.apply(model).__enter__(),
        "attached": lineas.attached,
        "detach": lineas.detach,
        "merge": maps.merge,
        "merge_plan": maps.merge_plan,
        "unmerge": maps.unmerge,
        "rank": lambda model: lineas.experts.rank(model, texts, texts),
        "rank_concepts": lambda model: lineas.experts.rank_concepts(model, {"a": texts, "b": texts}),
        "significance": lambda model: lineas.experts.significance(model, texts, texts),
        "evaluate": lambda model: lineas.evaluate(model, maps, **measured),
        "evaluate the base": lambda model: lineas.evaluate(model, **measured),
        "responses": lambda model: lineas.evaluation.responses(model, texts),
        "perplexity": lambda model: lineas.evaluation.perplexity(model, texts),
        "continuations": lambda model: lineas.evaluation.continuations(model, texts),
        "kl_divergence": lambda model: lineas.evaluation.kl_divergence(model, texts, maps),
    }


@pytest.mark.parametrize("name", entry_points())
def test_a_pipeline_is_refused_with_the_modules_that_it_holds(name, mlp):
    call = entry_points()[name]
    with pytest.raises(
        TypeError, match=r"model: expected a torch.nn.Module, got Pipeline; pass what it holds: \.model$"
    ):
        call(Pipeline(model=mlp))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Pipeline(unet=torch.nn.Linear(1, 1), vae=torch.nn.Linear(1, 1)), r"; pass what it holds: \.unet or \.vae$"),
        (Pipeline(), "got Pipeline$"),
        (torch.nn.Linear, "got the class Linear; pass one that was made of it"),
        ("org/name", "got str 'org/name'; load it first, for instance with from_pretrained"),
        (None, "got NoneType$"),
    ],
)
def test_what_is_no_network_is_named_with_the_way_to_one(other, message):
    with pytest.raises(TypeError, match=f"model: expected a torch.nn.Module, .*{message}"):
        lineas.find_sites(other)


# -- what is the same for all samples --


@pytest.mark.parametrize("sites", [["model.rotary_emb"], "model.rotary_emb:1"])
def test_rotary_positions_are_refused_as_what_all_samples_share(llama, texts, tokenizer, sites):
    said = r"'model.rotary_emb.*': expected samples in dimension 0 \(2 here\), got \(1, 7, 8\), the same for .*cos, sin"
    for call in (
        lambda: lineas.fit(llama, *texts, tokenizer=tokenizer, sites=sites, progress=False),
        lambda: lineas.fit(llama, *texts, tokenizer=tokenizer, sites=sites, method="caa"),
        lambda: lineas.fit(llama, *texts, tokenizer=tokenizer, loss_sites=sites, progress=False),
        lambda: lineas.experts.rank(llama, *texts, sites, tokenizer=tokenizer),
        lambda: lineas.evaluation.responses(llama, texts[0], sites, tokenizer=tokenizer),
    ):
        with pytest.raises(ValueError, match=said):
            call()


# -- names that there are not --


@pytest.mark.parametrize("sites", ["zzzz", ["zzzz"]])
def test_where_no_name_is_near_the_message_says_what_there_is(llama, sites):
    with pytest.raises(
        LookupError, match=r"'zzzz'.*; there is model\.layers\.\*\.input_layernorm \(3 LlamaRMSNorm\), mod"
    ):
        lineas.find_sites(llama, sites)


@pytest.mark.parametrize(
    ("sites", "message"),
    [(None, "Candidates here: none, it has no modules inside"), ("x", "; there is none"), (["x"], "; there is none")],
)
def test_a_network_of_one_module_has_no_sites_and_says_so(sites, message):
    with pytest.raises(LookupError, match=message):
        lineas.find_sites(torch.nn.Linear(2, 2), sites)


def test_far_names_of_a_steering_are_answered_with_its_sites():
    steering = lineas.Steering({f"block{k}": ([1.0], [0.5]) for k in range(10)})
    with pytest.raises(LookupError, match="no map for site 'zzzz'; there is block0, .*, block7 and 2 more$"):
        steering.weight("zzzz")
    with pytest.raises(LookupError, match="no map for site 3; there is block0"):
        steering.weight(3)
    assert nearest("x", []) == "there is none"
