"""Batches that are in a file come back as they were."""

import pytest
import torch

from lineas.core.spill import Spill
from lineas.network import tree
from lineas.network.batch import Batch, Listed, Shared
from lineas.network.identity import data_digest
from lineas.network.kept import COPIES, Kept, sizes_of, stays

RICH = {
    "half": torch.arange(6).view(2, 3).to(torch.bfloat16),
    "across": torch.arange(12.0).view(3, 4).T[:2],  # not contiguous
    "number": torch.tensor(3),
    "empty": torch.zeros(2, 0),
    "nested": {"flags": [torch.tensor([True, False]), None, "text"]},
    "shared": Shared(torch.arange(5)),
    "listed": Listed((torch.ones(2), torch.ones(3))),
}


def batch(number):
    return Batch((torch.full((2, 4), float(number)),), RICH, 2, number)


@pytest.fixture
def kept():
    one = sum(tensor.numel() * tensor.element_size() for tensor in batch(0).tensors())
    with Spill() as spill:
        found = Kept(one + one // 2, spill.file)
        for number in range(3):
            found.append(batch(number))
        yield found


def test_what_outgrows_the_bound_is_read_from_a_file_as_it_was(kept):
    assert [stays(kept, k) for k in range(3)] == [True, False, False]
    assert kept.outgrew
    assert sizes_of(kept) == [2, 2, 2]
    for number, found in enumerate(kept):
        assert (found.size, found.number) == (2, number)
        pairs = zip(tree.leaves(found.plain()), tree.leaves(batch(number).plain()), strict=True)
        for (path, got), (expected_path, expected) in pairs:
            assert path == expected_path
            assert type(got) is type(expected)
            if isinstance(expected, torch.Tensor):
                assert got.dtype == expected.dtype
                assert torch.equal(got, expected)
        assert isinstance(found.kwargs["shared"], Shared)
        assert isinstance(found.kwargs["listed"], Listed)
    assert kept[1] is not kept[1]
    assert kept[0] is kept[0]
    assert [one.number for one in kept[1:]] == [1, 2]


def test_the_digest_is_that_of_the_same_batches_in_memory(kept):
    assert data_digest(kept) == data_digest([batch(number) for number in range(3)])


def test_what_is_read_goes_where_the_model_is(kept):
    assert {tensor.device.type for one in kept.on(torch.device("meta")) for tensor in one.tensors()} == {"meta"}


def test_a_batch_with_a_mask_takes_the_room_of_its_copies():
    kept, tokens = Kept(), torch.ones(2, 5, dtype=torch.long)
    kept.append(Batch((), {"input_ids": tokens, "attention_mask": tokens}, 2))
    assert kept.used == COPIES * 2 * 10 * 8


def test_views_of_what_somebody_else_has_take_no_room(kept):
    used = kept.used
    kept.append(batch(3), is_new=False)
    assert stays(kept, 3)
    assert kept.used == used
