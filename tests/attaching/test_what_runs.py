"""Sites that never run: refused where that can be told at once, else told after the first forward pass."""

import warnings

import pytest
import torch
from conftest import normal
from torch import nn

import lineas
from lineas import Steering
from lineas.attaching.first_pass import FirstPass

MAPS = [2.0] * 4, [1.0] * 4
FIT = {"src": normal(8, 4), "tgt": normal(8, 4, seed=1)}


def net(depth=3):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))


class Branches(nn.Module):
    """Runs the branches that it is told to."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x, chosen=(0,)):
        for k in chosen:
            x = self.branches[k](x)
        return self.experts[0](x)


BRANCHES = Steering({f"branches.{k}": MAPS for k in range(3)} | {f"experts.{k}": MAPS for k in range(2)})
DID_NOT = "2 of 5 steered sites did not run in the first forward pass of Branches, .*: branches.1, branches.2"


# -- told at once --


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [lambda m: torch.jit.trace(m, normal(2, 4)), torch.jit.script])
def test_what_torch_jit_made_is_refused(make):
    made = make(net())
    inside = nn.Sequential(net(1), made)
    for call in (
        lambda: Steering({"0": MAPS}).attach(made),
        lambda: lineas.find_sites(made, "0"),
        lambda: lineas.fit(made, **FIT, sites=["0"]),
        lambda: lineas.experts.rank(made, FIT["src"], FIT["tgt"], sites=["0"]),
    ):
        with pytest.raises(TypeError, match="expected modules that Python calls, got a .*torch.jit makes is one piece"):
            call()
    for call in (
        lambda: Steering({"1.0": MAPS}).attach(inside),
        lambda: lineas.fit(inside, **FIT, sites=["1.0"]),
    ):
        with pytest.raises(ValueError, match=r"site '1.0': expected a module that runs .*got part of a "):
            call()
    base = inside(FIT["src"])
    if isinstance(made, torch.jit.RecursiveScriptModule):
        with pytest.raises(ValueError, match="site '1': expected .* got a RecursiveScriptModule, which takes no hooks"):
            Steering({"1": MAPS}).attach(inside)
    else:
        with Steering({"1": MAPS}).apply(inside):  # as a whole it is called
            torch.testing.assert_close(inside(FIT["src"]), 2 * base + 1)


def test_what_torch_export_left_is_refused():
    made = torch.export.export(net(), (normal(8, 4),)).module()
    for call in (lambda: Steering({"0": MAPS}).attach(made), lambda: lineas.fit(made, **FIT, sites=["0"])):
        with pytest.raises(ValueError, match="site '0': expected a module that runs .*torch.export"):
            call()


def test_what_torch_fx_made_is_steered():
    made, x = torch.fx.symbolic_trace(net(2)), normal(2, 4)
    base = made(x)
    with Steering({"1": MAPS}).apply(made):
        torch.testing.assert_close(made(x), 2 * base + 1)


def test_containers_are_no_sites():
    model = Branches()
    with pytest.raises(ValueError, match="site 'branches': expected .* got one without a forward: a container"):
        lineas.find_sites(model, ["branches"])
    assert [site.name for site in lineas.find_sites(model, "branches.*")] == ["branches.0", "branches.1", "branches.2"]


def test_the_weight_of_an_attention_is_refused():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(ValueError, match=r"'self_attn.out_proj': .*nn.MultiheadAttention reads.*item 0, is a site"):
        Steering({"self_attn.out_proj": MAPS}).attach(layer)
    x = normal(2, 3, 4)
    base = layer.eval()(x)
    with Steering({"self_attn:0": MAPS}).apply(layer):
        assert not torch.allclose(layer(x), base)


def test_nested_tensors_are_refused_by_name():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    padding = torch.tensor([[False, False, True]])
    with (
        warnings.catch_warnings(),
        Steering({"layers.0.linear2": MAPS}).apply(model),
        torch.no_grad(),
        pytest.raises(TypeError, match="expected a tensor .*got a nested one; nn.TransformerEncoder makes none with"),
    ):
        warnings.simplefilter("ignore")  # torch's own, of a prototype
        model(normal(1, 3, 4), src_key_padding_mask=padding)


# -- told after the first pass --


def test_what_did_not_run_is_told_once():
    model = Branches()
    with BRANCHES.apply(model):
        with pytest.warns(UserWarning, match=DID_NOT):
            model(normal(2, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(normal(2, 4), (1,))
    with BRANCHES.apply(model), pytest.warns(UserWarning, match=DID_NOT):
        model(normal(2, 4))


def test_of_passes_that_end_at_once_in_several_threads_one_tells():
    model = Branches()
    with BRANCHES.apply(model):
        (hook,) = (hook for hook in model._forward_hooks.values() if isinstance(hook, FirstPass))
        with pytest.warns(UserWarning, match=DID_NOT):
            model(normal(2, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hook(model, (), None)  # another thread, which was in it already


def test_a_pass_with_an_error_tells_nothing_yet():
    model = Branches()
    with BRANCHES.apply(model):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(IndexError):
                model(normal(2, 4), (0, 9))
        with pytest.warns(UserWarning, match=DID_NOT):
            model(normal(2, 4))


def test_nothing_is_told_of_what_ran_nor_of_compiled_code():
    compiled = Branches()
    compiled.branches[1].compile(backend="eager")
    compiled.branches[2].forward = torch.compile(compiled.branches[2].forward, backend="eager")
    whole = torch.compile(Branches(), backend="eager")
    for model, chosen in ((Branches(), (0, 1, 2)), (compiled, (0,)), (whole, (0,))):
        with BRANCHES.apply(model), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model(normal(2, 4), chosen)
        assert not [one for one in told if "did not run" in str(one.message)]
        assert not lineas.attached(model)
