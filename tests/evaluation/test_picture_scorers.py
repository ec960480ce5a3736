"""What pictures are scored by: functions and what they are called with, the judge, CLIP, DINOv2, LPIPS."""

import builtins
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_model import CALL, FOLDER, JUDGE, captions, trained_pipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lineas import evaluation

DRAW = np.random.default_rng(0)
PICTURES = DRAW.random((3, 64, 64, 3), np.float32)
BASE = DRAW.random((3, 64, 64, 3), np.float32)
PROMPTS = ["a photo of a dog", "a heart", "a rocket and a red heart on a grey background"]


# -- functions --


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (lambda pictures: 0, ("pictures",)),
        (lambda *given: 0, ("pictures",)),
        (min, ("pictures",)),
        (lambda x, words: 0, ("pictures", "prompts")),
        (lambda x, base: 0, ("pictures", "base")),
        (lambda x, rows, base=None: 0, ("pictures", "rows", "base")),
        (lambda x, scale=2: 0, ("pictures",)),
        (lambda x, base, words, rows: 0, ("pictures", "base", "prompts", "rows")),
        (torch.nn.Identity(), ("pictures",)),
    ],
    ids=range(9),
)
def test_a_function_is_called_with_what_its_parameters_are_called(function, takes):
    assert evaluation.picture_scorer(function).takes == takes


def test_a_scorer_gets_pictures_prompts_base_and_rows_and_may_spoil_them():
    got = []

    def spoil(pictures, prompts, base, rows):
        got.extend([pictures.copy(), prompts, base.copy(), rows])
        pictures[:], base[:] = 0, 0
        return [1, 2, 3]

    before = PICTURES.copy(), BASE.copy()
    one = evaluation.picture_scorer(spoil)
    assert one(PICTURES, PROMPTS, BASE, [4, 5, 6]).tolist() == [1, 2, 3]
    assert one.name == "spoil"
    assert np.array_equal(PICTURES, before[0])
    assert np.array_equal(BASE, before[1])
    assert np.array_equal(got[0], PICTURES)
    assert np.array_equal(got[2], BASE)
    assert (got[1], got[3]) == (PROMPTS, [4, 5, 6])


def test_what_is_missing_and_scores_that_are_not_a_number_each_are_refused():
    with pytest.raises(ValueError, match="scorer 'effect': expected base too, got none"):
        evaluation.picture_scorer(lambda pictures, base: 0)(PICTURES)
    with pytest.raises(ValueError, match=r"scorer 'effect': expected 3 finite numbers, .*got shape \(1,\)"):
        evaluation.picture_scorer(lambda pictures: [1.0])(PICTURES)
    with pytest.raises(ValueError, match="some that are not finite"):
        evaluation.picture_scorer(lambda pictures: [np.nan, 1.0, 2.0])(PICTURES)
    with pytest.raises(TypeError, match="pictures: expected PIL images, an array or a tensor, got list"):
        evaluation.picture_scorer(len)(["some", "texts"])
    with pytest.raises(ValueError, match="better: expected one of 'higher', 'lower', ''; got 'up'"):
        evaluation.PictureScorer("a", len, "up")
    with pytest.raises(ValueError, match="takes: expected some of pictures, prompts, base, rows; got 'masks'"):
        evaluation.PictureScorer("a", len, takes=("pictures", "masks"))


@pytest.mark.parametrize("name", ["sentiment", "clip", "clip:", "judge:file.safetensors", "judge:#heart", "hf:a#b"])
def test_names_that_nobody_has_are_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match="scorer: expected 'judge:FILE#CONCEPT'"):
        evaluation.picture_scorer(name)
    with pytest.raises(TypeError, match="scorer: expected 'judge:FILE#CONCEPT', .*; got int"):
        evaluation.picture_scorer(3)


# -- the judge --


@pytest.fixture(scope="module")
def judge():
    return evaluation.Judge.from_file(JUDGE)


@pytest.fixture(scope="module")
def pipe():
    return trained_pipeline()


def drawn(pipe, items):
    prompts = [one["prompt"] for one in items]
    return pipe(prompts, generator=evaluation.generators(0, len(prompts)), output_type="np", **CALL).images


def logits_by_hand(pictures):
    """As the model's README describes the network, by the names of its tensors."""
    t = {name: value.float() for name, value in load_file(JUDGE).items()}
    colours = torch.from_numpy(pictures).movedim(-1, 1)
    x = F.conv2d(2 * colours - 1, t["stem.weight"], t["stem.bias"], padding=1)
    for k in range(4):
        x = F.conv2d(x, t[f"down.{k}.weight"], t[f"down.{k}.bias"], stride=2, padding=1)
        x = F.silu(F.group_norm(x, 8, t[f"norms.{k}.weight"], t[f"norms.{k}.bias"]))
        more = F.conv2d(x, t[f"more.{k}.weight"], t[f"more.{k}.bias"], padding=1)
        x = x + F.silu(F.group_norm(more, 8, t[f"norms2.{k}.weight"], t[f"norms2.{k}.bias"]))
    flat, plain = x.flatten(2), colours.flatten(2)
    seen = torch.cat([flat.mean(2), flat.amax(2), plain.mean(2), plain.std(2)], 1)
    return {
        head: seen @ t[f"heads.{head}.weight"].T + t[f"heads.{head}.bias"]
        for head in ("subject", "extra", "style", "ground", "count")
    }


def test_the_judge_is_the_network_that_its_readme_describes(judge):
    found, expected = judge._logits(PICTURES), logits_by_hand(PICTURES)
    assert found.keys() == expected.keys()
    for head, logits in expected.items():
        assert torch.allclose(found[head], logits, atol=1e-4)


def test_the_judge_finds_in_pictures_what_their_captions_say(judge, pipe):
    """At the rates of the model's README, less what chance may do with 32 pictures."""
    hearts, plain = captions("heart")[:32], captions()[:32]
    with_heart, without = drawn(pipe, hearts), drawn(pipe, plain)
    assert judge.presence("heart")(with_heart).mean() > 0.75
    assert judge.presence("heart")(without).mean() < 0.05
    assert judge.presence("plain")(without).mean() > 0.8
    for name, scorer in (("subject", judge.subject), ("ground", judge.background)):
        names = [one[name] for one in plain]
        assert scorer(names)(without).mean() > 0.8
        assert scorer([names[-1], *names[:-1]])(without).mean() < 0.3, "names of the neighbours"
    assert judge.other_extras()(with_heart).mean() > 0.75
    assert judge.other_extras(["heart"])(with_heart).mean() < 0.3
    assert judge.style(["plain"] * 32)(without).mean() > 0.8
    by_name = evaluation.picture_scorer(f"judge:{JUDGE}#heart")
    assert by_name(with_heart).tolist() == judge.presence("heart")(with_heart).tolist()
    assert (by_name.name, by_name.better) == ("heart", "")


def test_a_row_has_its_own_name(judge, pipe):
    items = captions()[:6]
    pictures = drawn(pipe, items)
    scorer = judge.subject([one["subject"] for one in items])
    together = scorer(pictures)
    assert together.sum() >= 4
    assert np.concatenate([scorer(pictures[k : k + 2], rows=range(k, k + 2)) for k in (0, 2, 4)]).tolist() == [
        *together
    ]


def test_what_the_judge_does_not_know_is_refused(judge, tmp_path):
    with pytest.raises(LookupError, match="the judge does not know 'hart'; nearest names: .*heart"):
        judge.presence("hart")
    with pytest.raises(LookupError, match="the judge knows no subjects called 'doge'; nearest names: dog"):
        judge.subject(["dog", "doge"])
    with pytest.raises(LookupError, match="the judge knows no extras called 'snows'"):
        judge.other_extras(["snows"])
    with pytest.raises(TypeError, match="names: expected a list of them, got one string, 'dog'"):
        judge.subject("dog")
    with pytest.raises(ValueError, match="judge: expected pictures of 64 x 64, got 32 x 64"):
        judge.presence("heart")(PICTURES[:, :32])
    with pytest.raises(FileNotFoundError, match="judge: expected a file, got 'gone.safetensors'"):
        evaluation.Judge.from_file("gone.safetensors")
    save_file({"stem.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for name in ("other", "text"):
        with pytest.raises(ValueError, match="expected a judge's file, got something else: .*safetensors"):
            evaluation.Judge.from_file(tmp_path / f"{name}.safetensors")


# -- networks of transformers --


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny random CLIP and a DINOv2, saved with what prepares their inputs."""
    import transformers as hf

    side = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = {**side, "vocab_size": 614, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    seen = {**side, "image_size": 32, "patch_size": 8}
    scale = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    size = {"do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32, "resample": 3}
    where = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.CLIPConfig(text_config={**words, "pad_token_id": 1}, vision_config=seen, projection_dim=8)
        networks = {"clip": hf.CLIPModel(config), "dino": hf.Dinov2Model(hf.Dinov2Config(**seen))}
    for name, network in networks.items():
        where[name] = tmp_path_factory.mktemp(name)
        network.eval().save_pretrained(where[name])
        kind = {"clip": "CLIPImageProcessor", "dino": "BitImageProcessor"}[name]
        settings = {"image_processor_type": kind, **scale, **size}
        (where[name] / "preprocessor_config.json").write_text(json.dumps(settings))
    hf.AutoTokenizer.from_pretrained(FOLDER / "pipeline" / "tokenizer").save_pretrained(where["clip"])
    return where


def prepared(pictures):
    """As the processors of the fixture do it: shrunk, cut nothing, moved and scaled."""
    small = [Image.fromarray(np.rint(255 * one).astype(np.uint8)).resize((32, 32), 3) for one in pictures]
    return torch.stack([(torch.tensor(np.asarray(one)) / 255 - 0.5) / 0.25 for one in small]).movedim(-1, 1)


def clip_features(folder, pictures, texts):
    import transformers as hf

    model = hf.CLIPModel.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(prepared(pictures)).pooler_output)
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        ids = [one if one.shape[1] <= 12 else torch.cat([one[:, :11], one[:, -1:]], 1) for one in ids]
        read = torch.cat([model.text_projection(model.text_model(one).pooler_output) for one in ids])
    normed = F.normalize(seen.double(), dim=1), F.normalize(read.double(), dim=1)
    return *normed, float(model.logit_scale.detach().exp())


def test_clip_is_the_cosine_of_a_picture_and_its_prompt(folders):
    seen, read, _ = clip_features(folders["clip"], PICTURES, PROMPTS)
    expected = (seen * read).sum(1).numpy()
    assert np.ptp(expected) > 0.01
    one = evaluation.picture_scorer(f"clip:{folders['clip']}")
    assert one(PICTURES, PROMPTS) == pytest.approx(expected, abs=1e-4)
    assert (one.name, one.better) == ("clip", "higher")
    assert one(PICTURES[1:], PROMPTS[1:]) == pytest.approx(expected[1:], abs=1e-4), "padding counts nowhere"


def test_clip_with_texts_is_the_probability_of_the_first(folders):
    texts = ["a heart", "a dog", "no heart"]
    seen, read, scale = clip_features(folders["clip"], PICTURES, texts)
    expected = (scale * seen @ read.T).softmax(1)[:, 0].numpy()
    one = evaluation.picture_scorer(f"clip:{folders['clip']}#{'|'.join(texts)}")
    assert one(PICTURES) == pytest.approx(expected, abs=1e-4)
    assert (one.name, one.better) == ("a heart", "")
    for wrong in ("a heart", "a heart|a heart"):
        with pytest.raises(ValueError, match="texts: expected at least two different ones"):
            evaluation.picture_scorer(f"clip:{folders['clip']}#{wrong}")


def test_dino_is_the_cosine_with_the_picture_without_steering(folders):
    import transformers as hf

    model = hf.Dinov2Model.from_pretrained(folders["dino"]).eval()
    with torch.no_grad():
        first, second = (model(prepared(one)).pooler_output.double() for one in (PICTURES, BASE))
    one = evaluation.picture_scorer(f"dino:{folders['dino']}")
    assert one(PICTURES, base=BASE) == pytest.approx(F.cosine_similarity(first, second).numpy(), abs=1e-4)
    assert one(PICTURES, base=PICTURES) == pytest.approx(1)
    assert one(PICTURES, base=BASE).max() < 0.9999


def test_a_network_of_another_kind_is_refused(folders):
    with pytest.raises(ValueError, match="expected a CLIP, got Dinov2Model"):
        evaluation.clip(str(folders["dino"]))
    with pytest.raises(ValueError, match="expected a network of pictures alone, got CLIPModel"):
        evaluation.dino(str(folders["clip"]))


# -- packages that may be missing --


def test_lpips_gets_both_pictures_and_says_that_they_go_from_0_to_1(monkeypatch):
    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.net = net

        def forward(self, first, second, normalize=False):
            assert normalize
            assert first.shape == (3, 3, 64, 64)
            return (first - second).square().mean((1, 2, 3), keepdim=True) + (self.net == "vgg")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    expected = np.square(PICTURES - BASE).mean((1, 2, 3))
    assert evaluation.picture_scorer("lpips")(PICTURES, base=BASE) == pytest.approx(expected, rel=1e-5)
    assert evaluation.picture_scorer("lpips:vgg")(PICTURES, base=BASE) == pytest.approx(expected + 1, rel=1e-5)
    assert evaluation.lpips().better == "lower"


@pytest.mark.parametrize(
    ("name", "package", "advice"),
    [("lpips", "lpips", "pip install lpips"), ("clip:a", "transformers", r"'clip:a' .*'lineas\[transformers\]'"),
     ("dino:a", "transformers", r"'dino:a' .*'lineas\[transformers\]'")],
)  # fmt: skip
def test_a_missing_package_is_named_with_what_installs_it(name, package, advice, monkeypatch):
    real = builtins.__import__

    def importing(module, *args, **kwargs):
        if module.partition(".")[0] == package:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ImportError, match=advice):
        evaluation.picture_scorer(name)
