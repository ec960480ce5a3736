"""Streams of samples, and what outgrows memory: the same bits wherever it is, and nothing is left of it."""

import errno
import os
import re
import shutil
import tempfile
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, Mlp, WordTokenizer, flat, normal, tiny
from processes import play, played, told
from torch import nn

import lineas
from lineas.core.spill import LANES, OnDisk, Spill
from lineas.fitting.memory import Memory, bytes_of
from lineas.network.kept import Kept

SOURCE, TARGET = normal(60, 1000), normal(50, 1000, seed=1, shift=0.1)
ROWS = [*SOURCE], [*TARGET]  # whose batches are made anew, where those of one tensor are views of it
TIGHT = "1150 kB"  # of which responses and samples would take more
OPTIONS = {"sites": "0|2", "batch_size": 16, "max_evaluations": 4, "progress": False}


def wide():
    """500 mapped units, several tiles of columns, and inputs that take more than an eighth of the bound."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1000, 300), nn.Tanh(), nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 3)).eval()


def fit(src=ROWS[0], tgt=ROWS[1], **options):
    return lineas.fit(wide(), src, tgt, **{**OPTIONS, **options})


def tight(**options):
    """Hardly more than the least that is possible, with an eighth of it for the samples of each set."""
    with pytest.raises(ValueError, match="memory: expected at least") as refused:
        fit(**options, memory=1)
    least, unit = re.search(r"at least ([\d.]+) (kB|MB)", str(refused.value)).groups()
    return f"{1.4 * float(least)} {unit}"


def same(one, other):
    return np.array_equal(flat(one), flat(other)) and one.history == other.history


class Stream:
    """What `datasets` has for a set that does not fit into memory: rows one after another, no length."""

    def __init__(self, rows):
        self.rows, self.begun = rows, 0

    def __iter__(self):
        self.begun += 1
        yield from self.rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go, and nothing else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def spilled(folder, monkeypatch):
    """What has gone into files: tables of responses, and batches of samples."""
    found = {"tables": [], "batches": 0}

    class Noted(OnDisk):
        def __init__(self, *args):
            super().__init__(*args)
            found["tables"].append(len(self.blocks))

    def written(self, batch, write=Kept._written):
        found["batches"] += 1
        return write(self, batch)

    monkeypatch.setattr("lineas.core.spill.OnDisk", Noted)
    monkeypatch.setattr(Kept, "_written", written)
    return found


def open_files():
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.exists() else 0


# -- the same bits --


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_weights": "standardised", "penalty": lineas.penalties.L1(1e-4), "pooling": ("mean", "max")},
        {"loss": "significant", "tgt": ROWS[1][:40]},
        {"loss": "wasserstein", "ridge": 0, "tgt": [*normal(60, 1000, seed=2, shift=0.2)]},
        {"tgt": [*SOURCE[:45] + 1], "threads": 2},
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_the_bound_decides_where_arrays_are_and_no_bit_of_the_result(options, spilled):
    threads = options.pop("threads", 1)
    in_memory = fit(**options)
    assert not spilled["tables"]
    assert not spilled["batches"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        in_files = fit(**options, memory=tight(**options))
    finally:
        torch.set_num_threads(before)
    assert spilled["tables"]
    assert min(spilled["tables"]) > 1, "in several blocks of columns"
    assert spilled["batches"]
    assert same(in_files, in_memory)
    assert in_files.info["data"] == in_memory.info["data"]


def test_rows_and_blocks_of_a_table_in_a_file_are_those_of_an_array(folder):
    values = np.asarray(normal(9, 3 * LANES + 5))
    with Spill() as spill:
        table = spill.table(*values.shape)
        table[2:9], table[0:2] = values[2:], values[:2]
        assert [block.stop - block.start for block in table.blocks] == [LANES, LANES, LANES + 5]
        np.testing.assert_array_equal(table[3:7], values[3:7])
        for block in table.blocks:
            np.testing.assert_array_equal(table.columns(block), values[:, block])
            table.put(block, -values[:, block])
        np.testing.assert_array_equal(table[:], -values)
    with pytest.raises(ValueError, match="closed file"):
        table[0:1]


# -- streams --


def test_a_stream_is_what_a_list_of_its_samples_is_and_is_read_once():
    listed = fit()
    stream = Stream([*TARGET])
    assert same(fit((row for row in SOURCE), stream), listed)
    assert stream.begun == 1
    pairs = fit(({"input": row} for row in SOURCE), iter([(row,) for row in TARGET]))
    assert same(pairs, listed)


def test_texts_of_a_stream_are_tokenised_as_they_come(spilled):
    held, most = 0, 0

    class Tokenizer(WordTokenizer):
        def __call__(self, text, **how):
            nonlocal held
            held -= 1
            return super().__call__(text, **how)

    def texts(listed):
        nonlocal held, most
        for text in listed:
            held += 1
            most = max(most, held)
            yield text

    how = {"batch_size": 3, "max_evaluations": 3, "progress": False}
    listed = lineas.fit(tiny("gpt2"), NEGATIVE, POSITIVE, tokenizer=WordTokenizer(), **how)
    streams = lineas.fit(tiny("gpt2"), texts(NEGATIVE), texts(POSITIVE), tokenizer=Tokenizer(), **how)
    assert most == 3
    assert same(streams, listed)


def test_streaming_datasets_are_streams():
    datasets = pytest.importorskip("datasets")
    sides = (
        datasets.Dataset.from_dict({"input": side.numpy()}).with_format("torch").to_iterable_dataset()
        for side in (SOURCE, TARGET)
    )
    assert same(fit(*sides), fit())


def test_a_loader_of_a_stream_keeps_its_batches(spilled):
    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(SOURCE)

    assert same(fit(torch.utils.data.DataLoader(Rows(), batch_size=16), memory=TIGHT), fit())
    assert spilled["batches"]


@pytest.mark.parametrize(
    ("stream", "options", "error", "message"),
    [
        (lambda: iter(SOURCE), {"batch_size": None}, ValueError, r"src: expected batch_size with .* list\(src\)"),
        (lambda: iter(["a", 1]), {}, TypeError, "src: expected strings, got 1 at position 1"),
        (lambda: ({"text": text} for text in NEGATIVE), {}, TypeError, r"pass \(row\['text'\] for row in src\)"),
        (lambda: iter([[1, 2], [3, 4]]), {}, TypeError, "src: expected a tensor, got a list of lists"),
        (lambda: iter([]), {}, ValueError, "src: expected at least 2 samples, got 0"),
        (lambda: iter(SOURCE), {"gate": True}, ValueError, "budget, gate: read src once more, .* got a stream"),
        (lambda: iter(SOURCE), {"budget": "5%"}, ValueError, "budget, gate: read src once more, .* got a stream"),
    ],
)  # fmt: skip
def test_streams_that_cannot_be_are_refused(stream, options, error, message):
    with pytest.raises(error, match=message):
        fit(stream(), **options)


def test_a_text_of_a_stream_is_named_by_its_number_in_it():
    texts = chain(NEGATIVE, ["word " * 70], NEGATIVE)
    with pytest.raises(ValueError, match=rf"src: text {len(NEGATIVE)} has 70 tokens"):
        lineas.fit(tiny("gpt2"), texts, POSITIVE, tokenizer=WordTokenizer(), batch_size=5, progress=False)


def test_reading_a_stream_is_shown(capsys):
    fit(iter(SOURCE), iter(TARGET), progress=True, memory=TIGHT)
    shown = capsys.readouterr()
    assert "lineas.fit: reading" in shown.err
    assert "more than memory=1.15 MB" in shown.out + shown.err
    fit(progress=True)
    assert "reading" not in capsys.readouterr().err


# -- nothing is left --


def interrupted(entry):
    raise KeyboardInterrupt


def fails_midway():
    yield from SOURCE[:56]
    raise RuntimeError("the connection broke")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, None),
        ({"src": fails_midway}, RuntimeError),
        ({"callbacks": [interrupted]}, KeyboardInterrupt),
    ],
)  # fmt: skip
def test_no_file_is_left_however_a_fit_ends(options, error, spilled, folder):
    seen = []
    options = {"callbacks": [lambda entry: seen.append(os.listdir(folder))], **options}
    fit()  # whatever opens files once
    before = open_files()
    source = options.pop("src", lambda: ROWS[0])()
    if error is None:
        fit(source, memory=TIGHT, **options)
        assert not seen[0] or os.name == "nt", "files have no names"
    else:
        with pytest.raises(error) as caught:
            fit(source, memory=TIGHT, **options)
        assert caught.tb, "whose frames still know the arrays"
    assert spilled["batches"]
    assert not os.listdir(folder)
    assert open_files() == before


# -- what cannot be --


def test_a_bound_that_the_optimiser_and_a_tile_of_units_break_is_refused_with_numbers():
    with pytest.raises(ValueError, match=r"memory: expected at least [\d.]+ kB for 60 \+ 50 samples and 500 units, got "
                                         r"1 B: the optimiser .* kB, rows of the ridge 200 kB,"):  # fmt: skip
        fit(memory=1)


def test_responses_that_shall_be_on_disk_want_batches():
    with pytest.raises(ValueError, match=r"memory: expected batch_size .* got all 60 sources in one batch"):
        fit(batch_size=None, memory="1400 kB")


def test_a_disk_that_is_too_small_is_told_before_any_step(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(OSError, match=r"memory: responses need 580 kB on disk, and .* has 1 kB free; set TMPDIR"):
        fit(memory=TIGHT)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a file takes its room when it is written")
def test_a_disk_that_is_full_is_an_error_that_says_what_to_do(monkeypatch, folder):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"memory: no room for .* GB more in .*No space left on device.*set TMPDIR"):
        fit(memory=TIGHT)


@pytest.mark.parametrize(
    ("given", "size"),
    [(1, 1), ("1", 1), ("4 GB", 4 * 10**9), ("1.5gib", 3 << 29), ("2k", 2000), ("512 MiB", 1 << 29)],
)
def test_a_bound_is_a_number_or_a_text(given, size):
    assert bytes_of(given, "memory") == size


@pytest.mark.parametrize("given", [0, -1, "", "GB", "4 apples", "1.2.3 GB", "0.1", True, 1.5, b"4 GB"])
def test_what_is_no_size_is_refused(given):
    with pytest.raises((TypeError, ValueError), match="memory: expected bytes, such as '4 GB'"):
        fit(memory=given)


def test_the_published_recipe_keeps_all_and_says_so():
    with pytest.raises(ValueError, match="memory goes with the fast recipe"):
        fit(recipe="published", memory="1 GB")
    how = {"recipe": "published", "steps": 5, "max_evaluations": None}
    assert same(fit(iter(SOURCE), iter(TARGET), **how), fit(**how))


def test_the_bound_is_half_of_the_machine_shared_by_its_processes(monkeypatch):
    from lineas.fitting.distributed import Alone

    monkeypatch.setattr("lineas.fitting.memory.of_machine", lambda: 800)
    assert Memory(None, Alone(), bounded=True).bound == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Memory(None, Alone(), bounded=True).bound == 100
    assert Memory("5 GB", Alone(), bounded=True).bound == 5 * 10**9
    assert Memory(None, Alone(), bounded=False).bound is None


def test_a_single_batch_stays_in_memory_where_no_bound_was_asked_for(monkeypatch, spilled):
    monkeypatch.setattr("lineas.fitting.memory.of_machine", lambda: 2_600_000)
    one_batch = fit(batch_size=None)
    assert not spilled["tables"]
    fit()
    assert spilled["tables"]
    with pytest.raises(ValueError, match=r"memory: expected at least .* got 500 kB, half of what there is"):
        monkeypatch.setattr("lineas.fitting.memory.of_machine", lambda: 1_000_000)
        fit()
    assert one_batch.support


# -- resuming --


def test_a_fit_on_streams_that_was_killed_goes_on_to_the_same_bits(spilled, tmp_path):
    def sides():
        return iter(SOURCE), iter(TARGET)

    turns = count()

    def kill(entry):
        if next(turns) == 2:
            raise KeyboardInterrupt

    kept = {"checkpoint_dir": tmp_path / "run", "memory": TIGHT}
    with pytest.raises(KeyboardInterrupt):
        fit(*sides(), callbacks=[kill], **kept)
    resumed = fit(*sides(), resume_from=tmp_path / "run", **kept)
    assert same(resumed, fit())
    with pytest.raises(ValueError, match=r"expected the fit that (.|\n)* src: "):
        fit(iter(SOURCE + 1), iter(TARGET), resume_from=tmp_path / "run", **kept)


# -- several processes --


SCENES = "memory", "files", "resumed"


def shared(rank, **options):
    sides = (iter(side[rank::2]) for side in (SOURCE, TARGET))
    return fit(*sides, distributed=True, **options)


def killed_and_resumed(rank, folder):
    turns, kept = count(), {"checkpoint_dir": folder / "run", "memory": TIGHT}

    def kill(entry):
        if next(turns) == 2:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        shared(rank, callbacks=[kill], **kept)
    return shared(rank, resume_from=folder / "run", **kept)


def worker(rank, folder):
    tempfile.tempdir = str(folder / "files")
    scenes = {
        "memory": shared,
        "files": lambda rank: shared(rank, memory=TIGHT),
        "resumed": lambda rank: killed_and_resumed(rank, folder),
    }
    play(scenes, folder, rank)


@pytest.mark.process
def test_processes_that_keep_responses_in_files_come_to_the_bits_of_those_that_do_not(tmp_path):
    (tmp_path / "files").mkdir()
    assert played(worker, tmp_path) == [0, 0]
    maps = [np.load(tmp_path / f"{name}.{rank}.npy") for name in SCENES for rank in (0, 1)]
    assert all(np.array_equal(maps[0], other) for other in maps[1:])
    histories = [told(tmp_path, name, rank)["history"] for name in SCENES for rank in (0, 1)]
    assert all(histories[0] == other for other in histories[1:])
    assert not os.listdir(tmp_path / "files")


def test_methods_in_closed_form_take_streams():
    how = {"sites": "first", "method": "linear_act", "progress": False}
    sides = normal(20, 4), normal(24, 4, seed=1, shift=1.0)
    listed = lineas.fit(Mlp(), *sides, batch_size=8, **how)
    assert np.array_equal(flat(lineas.fit(Mlp(), *map(iter, sides), batch_size=8, **how)), flat(listed))
