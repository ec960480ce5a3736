"""Whatever the user has becomes batches; what cannot is refused before any work."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WordTokenizer, normal

import lineas
from lineas.network.data import as_batches

TEXTS = ["one two three", "four", "five six"]


def ids(batches):
    return [batch.kwargs["input_ids"].tolist() for batch in batches]


def test_texts_are_padded_on_the_right_and_masked(tokenizer):
    (batch,) = as_batches(TEXTS, "src", None, tokenizer)
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.size == 3
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert [row[: len(e)] for row, e in zip(ids([batch])[0], expected, strict=True)] == expected


def test_the_tokenizer_is_left_as_it_was(tokenizer):
    before = dict(vars(tokenizer))
    as_batches(TEXTS, "src", None, tokenizer, batch_size=2, max_length=2)
    assert vars(tokenizer) == before
    assert tokenizer.pad_token_id is None


def test_a_pad_token_is_used_where_there_is_one(tokenizer):
    tokenizer.pad_token_id = 7
    assert ids(as_batches(TEXTS, "src", None, tokenizer))[0][1][1:] == [7, 7]


def test_long_texts_are_cut(tokenizer):
    (batch,) = as_batches(TEXTS, "src", None, tokenizer, max_length=2)
    assert batch.kwargs["input_ids"].shape == (3, 2)


def test_batches_are_cut_in_order_and_padded_for_themselves(tokenizer):
    batches = as_batches(TEXTS, "src", None, tokenizer, batch_size=2)
    assert [batch.size for batch in batches] == [2, 1]
    assert batches[1].kwargs["input_ids"].shape == (1, 2)


def test_chats_go_through_the_template(tokenizer):
    chats = [[{"role": "user", "content": "hello there"}], [{"role": "user", "content": "bye"}]]
    (batch,) = as_batches(chats, "src", None, tokenizer)
    assert batch.mask.sum(1).tolist() == [3, 2]


def test_dicts_tensors_datasets_and_loaders_give_the_same_samples():
    x = normal(5, 4)
    data = torch.utils.data.TensorDataset(x)
    forms = [
        x,
        x.numpy(),
        data,
        torch.utils.data.DataLoader(data, batch_size=2),
        torch.utils.data.DataLoader(x, batch_size=5),
    ]
    for form in forms:
        batches = as_batches(form, "src", None, batch_size=2)
        assert torch.equal(torch.cat([batch.args[0] for batch in batches]), x)
    for values in (x, x.numpy()):
        (batch,) = as_batches({"x": values, "flag": True}, "src", None)
        assert torch.equal(batch.kwargs["x"], x)
        assert batch.kwargs["flag"] is True


def test_a_loader_keeps_its_own_batches(tokenizer):
    loader = torch.utils.data.DataLoader(TEXTS, batch_size=2)
    assert [batch.size for batch in as_batches(loader, "src", None, tokenizer, batch_size=1)] == [2, 1]


def test_a_batch_encoding_is_a_dict(tokenizer):
    from transformers import BatchEncoding

    encoding = BatchEncoding({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()})
    assert as_batches(encoding, "src", None)[0].size == 2


def test_what_transformers_tokenizers_say_of_their_length_is_obeyed():
    tokenizer = WordTokenizer()
    tokenizer.model_max_length = 2
    assert as_batches(TEXTS, "src", None, tokenizer)[0].kwargs["input_ids"].shape == (3, 2)
    tokenizer.model_max_length = 10**30  # transformers' way of saying that it does not know
    assert as_batches(TEXTS, "src", None, tokenizer)[0].kwargs["input_ids"].shape == (3, 3)


MASKED = torch.tensor([[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], ValueError, "src: expected at least 2 samples, got 0"),
        ("a text", TypeError, "src: expected a list of strings, got one string"),
        (["one"], ValueError, "src: expected at least 2 samples, got 1"),
        (normal(1, 4), ValueError, "src: expected at least 2 samples, got 1"),
        (normal(0, 4), ValueError, "src: expected at least 2 samples, got 0"),
        (["one", ""], ValueError, "src: text 1 has no tokens"),
        (3.5, TypeError, "got float"),
        ({"a": normal(2, 3), "b": normal(3, 3)}, ValueError, r"one length in dimension 0, got \{'a': 2, 'b': 3\}"),
        ({"a": 3}, TypeError, "tensors with samples in dimension 0"),
        ({"input_ids": torch.ones(2, 2).long(), "attention_mask": MASKED}, ValueError, "sample 1 .* is all padding"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": MASKED}, ValueError, r"got \(2, 2\) and \(2, 3\)"),
        ({"x": normal(2, 3), "attention_mask": torch.ones(2)}, ValueError, r"attention_mask \(batch, tokens\)"),
        ({"x": normal(2, 3), "attention_mask": 7 * torch.ones(2, 3)}, ValueError, "of 0 and 1, got values from 7 to 7"),
        (b"a text", TypeError, "src: expected a list of strings, got bytes"),
        ([b"one", b"two"], TypeError, "src: expected strings, got b'one' at position 0"),
        ([["one", "two"], ["three"]], TypeError, r"src: expected strings, got \['one', 'two'\] at position 0"),
        (np.array([["one"], ["two"]]), TypeError, "src: expected strings, got array.* at position 0"),
        ((text for text in TEXTS), ValueError, r"batch_size .* got generator without; .* make it a list\(src\)"),
        (set(TEXTS), TypeError, r"got set; make it a list\(src\)"),
        (dict(enumerate(TEXTS)), TypeError, r"got a dict of them; pass list\(src.values\(\)\)"),
        ({"text": TEXTS, "label": [0, 1, 1]}, TypeError, r"got a dict of \['text', 'label'\]; pass src\['text'\]"),
        ([{"role": "user", "content": "hello"}], TypeError, r"expected a list of chats, got one chat; pass \[src\]"),
        ([[3, 4, 5], [4, 5, 6]], TypeError, r"got a list of lists; pass torch.tensor\(src\)"),
        ([[3, 4, 5], [4, 5]], TypeError, "a dict of padded input_ids and attention_mask"),
        ({"input_ids": [[3, 4], [5, 6]]}, TypeError, "a tokenizer makes them with return_tensors='pt'"),
    ],
)
def test_bad_input_is_refused(tokenizer, inputs, error, message):
    with pytest.raises(error, match=message):
        as_batches(inputs, "src", None, tokenizer)


def test_strings_without_a_tokenizer_are_refused(mlp, llama):
    with pytest.raises(ValueError, match="tgt: strings need a tokenizer; pass tokenizer="):
        as_batches(TEXTS, "tgt", mlp)
    llama.name_or_path = "no/such-model"
    with pytest.raises(ValueError, match="none to load at 'no/such-model'"):
        as_batches(TEXTS, "tgt", llama)


@pytest.mark.parametrize("library", ["pandas", "datasets", "numpy", "deque"])
def test_any_sequence_of_texts_goes_by_position(tokenizer, library):
    expected = ids(as_batches(TEXTS, "src", None, tokenizer))
    if library == "pandas":
        frame = pytest.importorskip("pandas").DataFrame({"text": ["other", *TEXTS], "label": [0, 1, 1, 1]})
        given = frame[frame.label == 1].text
    elif library == "datasets":
        given = pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS})["text"]
    else:
        given = np.array(TEXTS, object) if library == "numpy" else deque(TEXTS)
    assert ids(as_batches(given, "src", None, tokenizer)) == expected


def test_a_series_of_arrays_goes_by_position():
    series = pytest.importorskip("pandas").Series(list(normal(3, 4).numpy()), index=[5, 6, 7])
    (batch,) = as_batches(series, "src", None)
    assert torch.equal(batch.args[0], normal(3, 4))


def test_a_table_is_refused_with_its_columns(tokenizer):
    frame = pytest.importorskip("pandas").DataFrame({"text": TEXTS, "label": [0, 1, 1]})
    with pytest.raises(TypeError, match=r"got a DataFrame of columns \['text', 'label'\]; pass one of them"):
        as_batches(frame, "src", None, tokenizer)


@pytest.mark.parametrize("form", ["Dataset", "dicts"])
def test_rows_with_a_text_are_refused_with_the_way_to_it(tokenizer, form):
    rows = [{"text": text, "label": k} for k, text in enumerate(TEXTS)]
    given = pytest.importorskip("datasets").Dataset.from_list(rows) if form == "Dataset" else rows
    with pytest.raises(TypeError, match=r"fields \['text', 'label'\]; pass \[row\['text'\] for row in tgt\]"):
        as_batches(given, "tgt", None, tokenizer)


def test_rows_with_a_text_that_the_model_takes_are_its_own():
    class Painter(torch.nn.Module):
        def forward(self, prompt, noise):
            return noise

    (batch,) = as_batches([{"prompt": text, "noise": normal(4)} for text in TEXTS], "src", Painter())
    assert batch.kwargs["prompt"] == TEXTS
    assert batch.size == 3


@pytest.mark.parametrize("value", [None, float("nan"), 3])
def test_what_is_no_string_among_strings_is_named(tokenizer, value):
    with pytest.raises(TypeError, match=rf"src: expected strings, got {value!r} at position 1"):
        as_batches(["one", value, "two"], "src", None, tokenizer)


def test_a_chat_without_content_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"src: chat 1: expected messages with a role and content, got \['role'\]"):
        as_batches([[{"role": "user", "content": "hello"}], [{"role": "user"}]], "src", None, tokenizer)


def test_a_tokenizer_goes_by_name_too(tokenizer, monkeypatch):
    import transformers

    names = []
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: names.append(name) or tokenizer)
    for given in ("some/name", Path("some/name")):
        assert ids(as_batches(TEXTS, "src", None, given)) == ids(as_batches(TEXTS, "src", None, tokenizer))
    assert names == ["some/name", "some/name"]


def test_doubles_are_cast_to_what_the_model_computes_in():
    x, net = normal(5, 4), torch.nn.Sequential(torch.nn.Linear(4, 3))
    steering = lineas.fit(net, x.double().numpy(), x.double().numpy() + 1, progress=False, sites="0", steps=2)
    expected = lineas.fit(net, x, x + 1, progress=False, sites="0", steps=2)
    assert np.array_equal(steering.bias("0"), expected.bias("0"))
    (batch,) = as_batches(x.double(), "src", net.double())
    assert batch.args[0].dtype == torch.float64


def test_options_of_another_kind_are_named():
    x, net = normal(5, 4), torch.nn.Sequential(torch.nn.Linear(4, 3))
    with pytest.raises(TypeError, match="sites: expected a regular expression, names or None, got 5"):
        lineas.fit(net, x, x + 1, sites=5)
    with pytest.raises(TypeError, match="callbacks: expected a list of functions, got <built-in function print>"):
        lineas.fit(net, x, x + 1, sites="0", callbacks=print)
    with pytest.raises(TypeError, match="callbacks: expected functions, got 3 at position 1"):
        lineas.fit(net, x, x + 1, sites="0", callbacks=[print, 3])


def test_a_dataset_with_columns_of_its_own_is_no_table():
    class Own(torch.utils.data.Dataset):
        columns = ("a", "b")

        def __len__(self):
            return 3

        def __getitem__(self, k):
            return normal(4, seed=k)

    (batch,) = as_batches(Own(), "src", None)
    assert batch.size == 3


@pytest.mark.parametrize("loaded", [False, True])
def test_labels_beside_the_samples_are_refused_with_what_the_model_takes(mlp, loaded):
    data = torch.utils.data.TensorDataset(normal(14, 4), torch.arange(14))
    data = torch.utils.data.DataLoader(data, batch_size=7) if loaded else data
    said = (
        r"tgt: .* what Mlp.forward takes, \(x\); got 2 items a sample, .*TensorDataset\(X\) rather than TensorDataset"
    )
    with pytest.raises(TypeError, match=said):
        as_batches(data, "tgt", mlp)


def test_a_mask_may_be_of_truth_values_or_have_longformers_two(llama):
    ids = torch.full((2, 3), 5)
    for mask in (
        torch.tensor([[True, True, False]] * 2),
        torch.tensor([[2, 1, 0]] * 2),
        torch.tensor([[1.0, 1, 0]] * 2),
    ):
        (batch,) = as_batches({"input_ids": ids, "attention_mask": mask}, "src", llama)
        assert torch.equal(batch.mask != 0, mask != 0)


def test_several_items_are_known_by_the_names_of_the_models_arguments(llama):
    ids, mask = torch.full((4, 3), 5), torch.tensor([[1, 1, 0]] * 4)
    (batch,) = as_batches(torch.utils.data.TensorDataset(ids, mask), "src", llama)
    assert batch.mask is not None
    assert torch.equal(batch.mask, mask), "padding is known as such"
    with pytest.raises(ValueError, match=r"src: expected attention_mask \(batch, tokens\), got \(4,\)"):
        as_batches(torch.utils.data.TensorDataset(ids, torch.arange(4)), "src", llama)
    with pytest.raises(ValueError, match="src: expected attention_mask of 0 and 1, got values from 5 to 5"):
        as_batches(torch.utils.data.TensorDataset(ids, ids), "src", llama)


def test_a_model_of_any_arguments_gets_them_as_they_are():
    class Any(torch.nn.Module):
        def forward(self, *inputs):
            return sum(inputs)

    pair = normal(3, 4), normal(3, 4)
    for model in (Any(), None):
        (batch,) = as_batches(torch.utils.data.TensorDataset(*pair), "src", model)
        assert [torch.equal(a, b) for a, b in zip(batch.args, pair, strict=True)] == [True, True]


class Callable:
    def __call__(self, text, **options):
        return text.split()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (object(), "expected a tokenizer of transformers, or the name of one, got object"),
        (WordTokenizer, "or the name of one, got the class WordTokenizer"),
        (torch.nn.Linear(2, 2), "or the name of one, got Linear"),
        (Callable(), "expected one that returns a dict with input_ids, got a Callable that returned a list"),
    ],
)
def test_what_is_no_tokenizer_is_refused(given, message):
    with pytest.raises(TypeError, match=f"^tokenizer: .*{message}"):
        as_batches(TEXTS, "src", None, given)


@pytest.mark.parametrize("option", ["batch_size", "max_length"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_sizes_that_are_no_whole_numbers_are_refused_everywhere(tokenizer, option, value):
    with pytest.raises(ValueError, match=f"^{option}: expected a whole number of at least 1, got {value!r}"):
        as_batches(TEXTS, "src", None, tokenizer, **{option: value})
    with pytest.raises(ValueError, match=f"^{option}: expected a whole number"):
        lineas.evaluation.responses(torch.nn.Sequential(torch.nn.Linear(2, 2)), normal(3, 2), "0", **{option: value})


def test_a_seed_that_is_no_whole_number_is_refused(mlp):
    for seed in ("0", None, 1.5):
        with pytest.raises(ValueError, match=f"^seed: expected a whole number, got {seed!r}"):
            lineas.fit(mlp, normal(5, 4), normal(5, 4), sites="first", progress=False, seed=seed)
