"""Files from strangers: nothing in them runs, and a small file never costs much memory or time."""

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lineas import Steering
from lineas.maps import statedicts
from lineas.maps.card import CONFIG, TENSORS

FRUGAL = 400 << 20  # bytes of address space that reading may take beyond what is in use


@contextmanager
def frugal():
    """MemoryError for what asks for much, and a failure for what takes long."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    start = time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (used + FRUGAL, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.perf_counter() - start < 10


@pytest.fixture
def folder(tmp_path):
    """A good one, to be spoilt."""
    Steering({"a": ([1.5, 1], [0, 2])}).save_pretrained(tmp_path)
    return tmp_path


class Bomb:
    """Runs a command when it is unpickled, which makes the file `ran`."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.system, (f"touch {self.where / 'ran'}",)


def refused(folder, match, read=Steering.from_pretrained):
    with frugal(), pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        read(folder)
    assert len(str(caught.value)) < 1500, "a large file makes no large message"
    assert not (folder / "ran").exists(), "it ran"


# -- a saved steering --


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_header(path, header: dict, data: bytes = b"", claimed: int | None = None):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + data)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_pickle_in_place_of_a_file_is_not_run(folder, name):
    (folder / name).write_bytes(pickle.dumps(Bomb(folder)))
    refused(folder, "not JSON|truncated or corrupted")
    pickle.loads((folder / name).read_bytes())
    assert (folder / "ran").exists(), "this one does run, where it is unpickled"


def test_a_header_that_claims_more_than_the_file_has_is_refused(folder):
    edit(folder, sites={"a": 10**18})
    refused(folder, "expected at most .* units, got 10{18}")
    for shape, end in (([10**18], 4 * 10**18), ([10**18], 16), ([2**62], 2**64), ([4, 2**62], 16)):
        edit(folder, sites={"a": 10**7})
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
        write_header(folder / TENSORS, {"a.weight": entry, "a.bias": entry}, bytes(16))
        refused(folder, "truncated or corrupted|disagrees")
    for claimed in (2**63, 10**9, 2**40):
        write_header(folder / TENSORS, {}, claimed=claimed)
        refused(folder, "truncated or corrupted: a header of")


def test_other_types_and_overlapping_tensors_are_refused(folder):
    def entry(dtype, begin, end, units):
        return {"dtype": dtype, "shape": [units], "data_offsets": [begin, end]}

    for pair in (
        (entry("F64", 0, 16, 2), entry("F64", 16, 32, 2)),
        (entry("BF16", 0, 4, 2), entry("BF16", 4, 8, 2)),
        (entry("F32", 0, 8, 2), entry("F32", 0, 8, 2)),
        (entry("F32", 0, 8, 2), entry("I32", 8, 16, 2)),
    ):
        write_header(folder / TENSORS, {"a.weight": pair[0], "a.bias": pair[1]}, bytes(pair[1]["data_offsets"][1]))
        refused(folder, "truncated or corrupted|disagrees")


def test_a_huge_sparse_file_is_refused_before_it_is_read(folder):
    units = 2**27
    edit(folder, sites={"a": units})
    refused(folder, "disagrees")  # as many units as are allowed
    entries = {
        f"a.{part}": {"dtype": "F32", "shape": [2**34], "data_offsets": [k * 2**36, (k + 1) * 2**36]}
        for k, part in enumerate(("bias", "weight"))
    }
    write_header(folder / TENSORS, entries)
    os.truncate(folder / TENSORS, (folder / TENSORS).stat().st_size + 2**37)
    refused(folder, r"expected at most \d+ bytes, got 1374")
    os.truncate(folder / CONFIG, 2**33)
    refused(folder, "expected at most .* bytes, got more")


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"format": "lineas-steering", "version": 1, "info": {"x": [['])
def test_json_that_is_nested_a_million_times_is_refused(folder, opening):
    last = "[" if opening.endswith("[") else opening
    (folder / CONFIG).write_text(opening + last * 10**6)
    refused(folder, "nested without end|not JSON")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": {"a": True}}, "expected sites with their units"),
        ({"sites": {"a": 2.0}}, "expected sites with their units"),
        ({"sites": {"a\x1b[2J": 2}}, "expected printable site names"),
        ({"sites": {"a\nb": 2}}, "expected printable site names"),
        ({"sites": {"": 2}}, "expected printable site names"),
        ({"sites": {"a" * 10**6: 2}}, "expected printable site names of at most 1000"),
        ({"sites": {"../../etc/passwd": 2}}, "disagrees with steering_config.json"),
        ({"sites": ["a"] * 10**6}, "expected sites with their units, got list of 1000000"),
        ({"version": "x" * 10**6}, "expected version 1, got 'xxx"),
        ({"history": [1, 2]}, "expected a history of lists"),
        ({"history": {"loss": 1}}, "expected a history of lists"),
        ({"info": "text"}, "expected info with names"),
        ({"sha256": 5}, "its checksum is not that"),
    ],
)
def test_a_config_that_says_something_else_is_refused(folder, changes, message):
    edit(folder, **changes)
    refused(folder, message)


def test_a_number_with_a_million_digits_is_refused(folder):
    (folder / CONFIG).write_text('{"format": "lineas-steering", "version": %s}' % ("9" * 10**6))
    refused(folder, "digits|version")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_pipe_or_a_device_is_no_file(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"no .*{name}")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, f"no .*{name}")


def test_path_like_names_touch_no_path(tmp_path, monkeypatch):
    name = f"../{tmp_path}/escaped"
    (tmp_path / "in").mkdir()
    Steering({name: ([2.0], [0])}, info={"model": "../../x", "model_class": "M"}).save_pretrained(tmp_path / "in" / "s")
    again = Steering.from_pretrained(tmp_path / "in" / "s")
    assert again.sites == [name]
    with pytest.raises(LookupError, match="no site"):
        again.attach(torch.nn.Linear(1, 1), strict=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_a_file_says_cannot_become_part_of_a_page_or_command_a_terminal():
    evil = "<script>alert(1)</script>"
    info = {"recipe": "\x1b[2J" + evil, "evaluations": 1, "seconds": 1, "stopped": "\x07", "made": "{x}"}
    steering = Steering({evil: ([2.0], [0])}, info=info)
    assert "<script" not in steering._repr_html_()
    assert "&lt;script" in steering._repr_html_()
    assert not {"\x1b", "\x07"} & {*steering._repr_html_(), *steering.summary()}


# -- files of the released implementation --


def refused_there(folder, match):
    refused(folder, match, Steering.from_statedicts)


def state(units=16, **changes):
    draw = torch.Generator().manual_seed(units)
    plain = {"net.w1": torch.randn(1, units, generator=draw), "net.b1": torch.randn(1, units, generator=draw)}
    return OrderedDict({**plain, "dim": torch.tensor(units), **changes})


def saved(folder, content, name="layers.0.norm", **options):
    torch.save(content, folder / f"{name}.statedict", **options)
    return folder


def test_statedicts_are_read_in_the_order_of_their_numbers(tmp_path):
    names = [f"model.layers.{k}.norm" for k in (0, 2, 10)]
    for k, name in enumerate(reversed(names)):
        saved(tmp_path, state(4 + k), name)
    saved(tmp_path, state(3, dim=3, **{"net.w1": torch.nn.Parameter(torch.full((1, 3), 2.0).half())}), "z")
    found = Steering.from_statedicts(tmp_path)
    assert found.sites == [*names, "z"]
    for k, name in enumerate(reversed(names)):
        assert np.array_equal(found.weight(name), state(4 + k)["net.w1"][0].numpy())
        assert np.array_equal(found.bias(name), state(4 + k)["net.b1"][0].numpy())
    assert found.weight("z").tolist() == [2, 2, 2]
    assert "4 .statedict files" in found.info["made"]
    torch.save(state(2, dim=1), tmp_path / "z.statedict")  # an axis
    assert len(Steering.from_statedicts(tmp_path).weight("z")) == 2
    with pytest.raises(FileNotFoundError, match=r"expected files called <module>\.statedict, found none"):
        Steering.from_statedicts(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (state(4, dim=torch.tensor(99)), "expected dim 4, or an axis, got 99"),
        (state(4, dim="4"), "expected dim 4, or an axis, got str"),
        (state(4, **{"net.b1": torch.ones(1, 5)}), r"expected net.w1 and net.b1 of one shape, got \(4,\) and \(5,\)"),
        (state(4, **{"net.b1": torch.ones(4)}), r"expected net.b1 with floats \(1, d\), got \(4,\)"),
        (state(4, **{"net.b1": torch.ones(2, 4)}), r"got \(2, 4\) torch.float32"),
        (state(4, **{"net.b1": torch.ones(1, 4).long()}), r"with floats \(1, d\), got \(1, 4\) torch.int64"),
        (state(4, **{"net.b1": torch.ones(1, 0)}), r"got \(1, 0\)"),
        (state(4, **{"net.b1": [1.0]}), "got list"),
        (state(4, **{"net.w2": torch.ones(1, 4)}), r"expected net.w1, net.b1 and dim, got \['net.w1'"),
        ({"net.w1": torch.ones(1, 4)}, r"got \['net.w1'\]"),
        ({}, "got dict"),
        ([torch.ones(1, 4)], "got list"),
        (state(4, **{"net.w1": torch.ones(1).expand(1, 10**12)}), r"expected net.w1 with floats \(1, d\), got"),
        (state(4, **{"net.w1": torch.full((1, 4), float("nan"))}), "expected finite maps"),
        (state(4, **{"net.w1": torch.ones(1, 4).to_sparse()}), "which no tensor is made of"),
        (state(4, extra=torch.nn.Linear(1, 1)), "it names .* which no tensor is made of"),
    ],
)
def test_a_state_dict_of_anything_else_is_refused_there(tmp_path, content, message):
    refused_there(saved(tmp_path, content), message)


def test_a_statedict_runs_nothing(tmp_path):
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        refused_there(saved(tmp_path, {"net.w1": Bomb(tmp_path)}, **options), "no tensor is made|got something else")
    (tmp_path / "layers.0.norm.statedict").write_bytes(pickle.dumps(Bomb(tmp_path)))
    refused_there(tmp_path, "expected a file that torch.save wrote")


def test_torch_itself_would_run_nothing_either(tmp_path, monkeypatch):
    monkeypatch.setattr(statedicts, "_check_archive", lambda *args: None)
    refused_there(saved(tmp_path, {"net.w1": Bomb(tmp_path)}), "corrupted, or no state dict")


def rezipped(folder, change, compression=zipfile.ZIP_STORED, more=()):
    """A good file whose entries are changed by a function of their name and content."""
    path = saved(folder, state()) / "layers.0.norm.statedict"
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in [*entries.items(), *more]:
            archive.writestr(name, change(name, content))
    return folder


def pickled(replace):
    return lambda name, content: replace(content) if name.endswith("data.pkl") else content


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path):
    def swell(name, content):
        return bytes(10**8) if name.endswith("data/0") else content

    path = tmp_path / "layers.0.norm.statedict"
    refused_there(rezipped(tmp_path, lambda name, content: content, zipfile.ZIP_DEFLATED), "none compressed")
    rezipped(tmp_path, swell, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2 * 10**6
    refused_there(tmp_path, "none compressed")
    many = [(f"archive/x{k}", b"") for k in range(200)]
    refused_there(rezipped(tmp_path, lambda name, content: content, more=many), "at most 100 entries")
    refused_there(rezipped(tmp_path, pickled(lambda c: c + bytes(10**5))), "one data.pkl of at most")
    raw = path.read_bytes()
    path.write_bytes(raw + b"PK" + bytes(50))
    refused_there(tmp_path, "got something else")
    path.write_bytes(raw[: len(raw) // 2] + raw[-22:])
    refused_there(tmp_path, "truncated or corrupted")
    os.truncate(path, 2**35)
    refused_there(tmp_path, "expected at most .* bytes")


def test_a_pickle_that_takes_memory_or_time_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    twice = b"".join([b"\x80\x02)q\x00", *(b"h%c" % k * 2 + b"\x86q%c" % (k + 1) for k in range(200)), b"."])
    allocates = b"\x80\x02c__builtin__\nbytearray\n" + b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was opened"))
    refused_there(rezipped(tmp_path, pickled(lambda c: twice)), "it uses a value twice")
    refused_there(rezipped(tmp_path, pickled(lambda c: allocates)), "it names '__builtin__ bytearray'")
    for broken in (b"", b"\x80\x02", b"\xff" * 50, b"\x80\x02X\xff\xff\xff\x7f."):
        refused_there(rezipped(tmp_path, pickled(lambda c, b=broken: b)), "expected a state dict")


def test_a_storage_that_claims_more_than_the_file_has_is_never_read(tmp_path):
    """A reader that believes it reads beyond the end of its memory."""
    claims = (b"J" + struct.pack("<i", 10**6), b"J" + struct.pack("<i", 2**31 - 1))

    def replaced(content, n):
        """In the storage's size, which a tuple ends, and in the tensor's shape."""
        return content.replace(b"K\x10t", n + b"t").replace(b"K\x10\x86", n + b"\x86")

    for claim in claims:
        rezipped(tmp_path, pickled(lambda content, n=claim: replaced(content, n)))
        refused_there(tmp_path, "corrupted|truncated|one shape|floats")


@pytest.mark.parametrize("name", ["net.w1", "net.b1"])
def test_a_damaged_value_is_refused(tmp_path, name):
    """The maps of any flipped bit are finite, mostly, and of the right shape."""
    values = state()[name].numpy().tobytes()
    path = saved(tmp_path, state()) / "layers.0.norm.statedict"
    good = path.read_bytes()
    for bit in range(0, 8 * len(values), 17):
        raw = bytearray(good)
        raw[good.index(values) + bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        refused_there(tmp_path, "is corrupted: .* has another checksum")


def test_a_record_of_another_size_is_refused(tmp_path):
    """Its neighbours' bytes would be read as weights."""

    def cut(name, content):
        return content[:-4] if name.endswith("data/0") else content

    refused_there(rezipped(tmp_path, cut), "expected 64 bytes in data/0, got 60")
    refused_there(
        rezipped(tmp_path, lambda name, content: content + bytes(4) * name.endswith("data/1")),
        "expected 64 bytes in data/1, got 68",
    )
    refused_there(
        rezipped(tmp_path, pickled(lambda c: c.replace(b"\x00\x00\x000q", b"\x00\x00\x007q"))), "in data/7, got None"
    )


def test_many_or_large_files_are_refused_before_any_is_opened(tmp_path, monkeypatch):
    for k in range(3):
        saved(tmp_path, state(), f"a.{k}")
    monkeypatch.setattr(statedicts, "COUNT_LIMIT", 2)
    refused_there(tmp_path, "expected at most 2 files")
    monkeypatch.setattr(statedicts, "COUNT_LIMIT", 5)
    monkeypatch.setattr(statedicts, "TOTAL_LIMIT", 100)
    refused_there(tmp_path, "and 100 bytes")


def test_a_name_that_hides_something_is_refused_there(tmp_path):
    refused_there(saved(tmp_path, state(), "a\nb"), "expected printable site names")


def test_bytes_that_are_flipped_anywhere_crash_nothing(tmp_path):
    good = io.BytesIO()
    torch.save(state(), good)
    draw, path = np.random.default_rng(0), tmp_path / "a.statedict"
    for _ in range(300):
        raw = bytearray(good.getvalue())
        for at in draw.integers(0, len(raw), draw.integers(1, 4)):
            raw[at] = draw.integers(256)
        path.write_bytes(raw)
        with frugal():
            try:
                found = Steering.from_statedicts(tmp_path)
            except ValueError:
                continue
        assert len(found.weight("a")) == 16
