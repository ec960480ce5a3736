"""Whatever the user has becomes batches; what cannot is refused before any work."""

import pytest
import torch
from conftest import WordTokenizer, normal

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
