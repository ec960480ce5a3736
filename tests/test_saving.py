"""What is saved is never lost: a reader finds the old version or the new one, whatever dies, fails, or saves beside."""

import errno
import hashlib
import json
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from saves import KINDS, names

from lineas import Steering
from lineas._storage import pairs, saving
from lineas.evaluation import Report
from lineas.maps import files
from lineas.maps.card import CARD, CONFIG, TENSORS

PAIRS = ["steerings", "rankings"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
posix = pytest.mark.skipif(os.name == "nt", reason="needs modes, links, pipes and folders that can be opened")


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=PAIRS)
def pair(request):
    return KINDS[request.param]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(saving, "PATIENCE", 0)


class Steps:
    """Does something at one of the calls that change the disk, or at all of them; counts them."""

    def __init__(self, monkeypatch, act, at=None):
        self.act, self.at, self.count = act, at, 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.around(getattr(os, name)))

    def around(self, function):
        def call(*args):
            self.step()
            result = function(*args)
            self.step()
            return result

        return call

    def step(self):
        self.count += 1
        if self.at in (None, self.count):
            self.act()


# -- a save that dies --


@pytest.mark.process
@needs_fork
@pytest.mark.parametrize(
    ("name", "rounds"), [*((name, 60) for name in KINDS), pytest.param("steerings", 600, marks=pytest.mark.slow)]
)
def test_a_save_that_is_killed_leaves_the_old_version_or_the_new_one(name, rounds, kill):
    report = kill(f"saves of {name}", rounds)
    assert report["kills"] == rounds
    assert report["lost"] == []
    assert report["where"] == ["after fsync", "after replace", "before fsync", "before replace", "within write"]
    assert set(report["files"]) == KINDS[name].files, "the next save removes what they left"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_a_save_that_fails_at_any_step_leaves_one_of_them_and_nothing_else(kind, error, tmp_path, monkeypatch):
    def fail():
        raise error

    kind.put(tmp_path, version := 0)
    for step in range(1, 100):
        with monkeypatch.context() as patch:
            steps = Steps(patch, fail, step)
            try:
                kind.put(tmp_path, version + 1)
            except type(error):
                pass
        found = kind.get(tmp_path)
        assert found in (version, version + 1)
        assert found == version or step > 2, "nothing happens before all that is new is safe on the disk"
        assert names(tmp_path) == kind.files, step
        version = found
        if steps.count < step:
            break
    assert step > 4, "it failed at every one of them"
    assert version > 0


def died(folder, elsewhere, pair, version):
    """Leave what a save of a version leaves that died between its config and the last move of its tensors."""
    elsewhere.mkdir()
    pair.put(elsewhere, version)
    config = next(elsewhere.glob("*.json"))
    tensors = next(elsewhere.glob("*.safetensors"))
    checksum = hashlib.sha256(tensors.read_bytes()).hexdigest()
    config.replace(folder / config.name)
    tensors.replace(folder / f"{tensors.name}.{checksum}.tmp")


@pytest.mark.parametrize("first", [False, True])
def test_tensors_that_wait_are_read_and_nothing_is_touched(pair, first, tmp_path):
    if not first:
        pair.put(tmp_path, 0)
    died(tmp_path, tmp_path / "new", pair, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert pair.get(tmp_path) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before, "a reader may have no right to"
    (waiting,) = tmp_path.glob("*.tmp")
    waiting.write_bytes(waiting.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ValueError, match=r"safetensors\.[0-9a-f]{64}\.tmp is corrupted, or of another folder: its checksum"
    ):
        pair.get(tmp_path)


def test_a_save_that_fails_after_one_that_died_ends_what_that_one_had_begun(pair, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    pair.put(tmp_path, 0)
    died(tmp_path, tmp_path / "new", pair, 1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", fail)
        pair.put(tmp_path, 2)
    assert pair.get(tmp_path) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_first_save_that_died_before_its_config_is_no_version(pair, tmp_path):
    pair.put(tmp_path, 0)
    next(tmp_path.glob("*.json")).unlink()
    with pytest.raises(FileNotFoundError, match="no .*config.json"):
        pair.get(tmp_path)


def test_what_dead_savers_left_goes_and_what_looks_like_it_stays(kind, tmp_path):
    for name in kind.files:
        for token in ("123", "0a1b2c3d4e5f6a7b", "f" * 64):  # as older versions wrote, as we do, and tensors that wait
            (tmp_path / f"{name}.{token}.tmp").write_bytes(b"half")
    mine = {"notes.tmp", *(f"{name}.backup.tmp" for name in kind.files), *(f"my-{name}.123.tmp" for name in kind.files)}
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    kind.put(tmp_path, 1)
    assert names(tmp_path) == kind.files | mine
    assert kind.get(tmp_path) == 1


def test_all_that_is_new_is_on_the_disk_before_it_gets_a_name(kind, tmp_path, monkeypatch):
    """Or a power cut could leave a name without content, or a config without its tensors."""
    safe, order, fsync, replace = set(), [], os.fsync, os.replace

    def recorded(descriptor):
        fsync(descriptor)
        safe.add(os.fstat(descriptor).st_ino)
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")

    def checked(source, target):
        assert os.stat(source).st_ino in safe, f"{source} was not written out"
        replace(source, target)
        order.append(os.path.basename(target).removesuffix(".tmp").rpartition(".")[2])

    kind.put(tmp_path, 0)
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", checked)
    kind.put(tmp_path, 1)
    moves = [what for what in order if what != "content"]
    if os.name != "nt":
        first = [moves[0], "folder", "json", "folder", "safetensors"]  # tensors beside the old ones, config, tensors
        assert moves[: len(first)] == (first if len(kind.files) > 1 else first[:1])


# -- savers and readers at once --


def test_at_every_step_of_a_save_a_reader_finds_a_version_without_waiting(kind, tmp_path, monkeypatch, impatient):
    kind.put(tmp_path, 0)
    found = []
    with monkeypatch.context() as patch:
        Steps(patch, lambda: found.append(kind.get(tmp_path)))
        kind.put(tmp_path, 1)
    assert found == sorted(found)
    assert set(found) == {0, 1}


def test_threads_that_save_and_read_at_once_never_fail_and_never_mix(kind, tmp_path):
    kind.put(tmp_path, 0)
    saved, reads = threading.Event(), []

    def save(writer):
        for k in range(60):
            kind.put(tmp_path, 1000 * writer + k)

    def read():
        while not saved.is_set():
            reads.append(kind.get(tmp_path))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            savers = [pool.submit(save, writer) for writer in range(1, 5)]
            try:
                for saver in savers:
                    saver.result()
            finally:
                saved.set()
            for reader in readers:
                reader.result()
    finally:
        sys.setswitchinterval(interval)
    assert kind.get(tmp_path) % 1000 == 59, "one of the four that came last"
    assert len(set(reads)) > 1
    assert names(tmp_path) == kind.files


@pytest.mark.process
@needs_fork
@pytest.mark.parametrize("name", KINDS)
def test_processes_that_save_and_read_at_once_never_fail_even_where_one_is_killed(name, kill):
    report = kill(f"savers of {name}", 60)
    assert report["savers"] == [0, 0, 0, -9]
    assert report["readers"] == [0, 0]
    assert set(report["files"]) == KINDS[name].files, "the next save removes what it left"


def interposed(monkeypatch, module, name, act):
    """Once, something happens before a function is called."""
    real, todo = getattr(module, name), [act]

    def call(*args):
        while todo:
            todo.pop()()
        return real(*args)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize("version", [1, 2])  # of the same shape, and of another
@pytest.mark.parametrize("within", ["read_tensors", "_check_header", "_check_contents", "_sha256"])
def test_a_save_in_the_middle_of_reading_gives_one_of_both(within, version, tmp_path, monkeypatch):
    kind = KINDS["steerings"]
    kind.put(tmp_path, 0)
    where = files if within == "read_tensors" else pairs
    interposed(monkeypatch, where, within, lambda: kind.put(tmp_path, version))
    assert kind.get(tmp_path) in (0, version)
    assert kind.get(tmp_path) == version


def test_a_config_without_a_checksum_is_never_read_with_newer_tensors(tmp_path, monkeypatch):
    kind = KINDS["steerings"]
    kind.put(tmp_path, 0)
    old = json.loads((tmp_path / CONFIG).read_text())
    del old["sha256"]
    (tmp_path / CONFIG).write_text(json.dumps(old))
    assert kind.get(tmp_path) == 0
    interposed(monkeypatch, files, "read_tensors", lambda: kind.put(tmp_path, 1))
    assert kind.get(tmp_path) == 1


def test_who_waits_too_long_for_another_save_is_told_so(kind, tmp_path, impatient):
    kind.put(tmp_path, 0)
    with (
        saving.turn(tmp_path),
        pytest.raises(TimeoutError, match=f"{tmp_path.name}: expected other saves there to end"),
    ):
        kind.put(tmp_path, 1)
    assert kind.get(tmp_path) == 0
    kind.put(tmp_path, 1)


@pytest.mark.process
@needs_fork
def test_a_process_that_was_forked_during_a_save_does_not_hold_up_the_next(tmp_path, impatient):
    reading, writing = os.pipe()
    with saving.turn(tmp_path):
        if (child := os.fork()) == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        with saving.turn(tmp_path):
            pass
    finally:
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0
        os.close(reading)


@posix
def test_where_there_are_no_locks_a_save_says_so_and_works(kind, tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(RuntimeWarning, match="has no locks .No locks available.: expected that nobody else saves there"):
        kind.put(tmp_path, 1)
    assert kind.get(tmp_path) == 1


# -- files as a plain `open` would leave them --


@posix
def test_a_file_that_others_may_not_read_stays_so_and_new_ones_are_as_the_umask_says(kind, tmp_path):
    kind.put(tmp_path, 0)
    (tmp_path / "plain").write_bytes(b"")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert len(set(modes.values())) == 1
    for name in kind.files:
        (tmp_path / name).chmod(0o600)
    kind.put(tmp_path, 1)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in kind.files} == {0o600}


@posix
def test_a_report_goes_through_a_link_and_into_a_pipe(tmp_path):
    report = Report({}, ())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere" / "report.json")
    for _ in range(2):
        report.to_json(tmp_path / "link.json")
        assert (tmp_path / "link.json").is_symlink()
        assert names(tmp_path / "elsewhere") == {"report.json"}
    assert Report.from_json(tmp_path / "link.json") == report
    os.mkfifo(tmp_path / "pipe")
    heard = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    report.to_json(tmp_path / "pipe")
    assert Report.from_json(os.read(heard, 1 << 16).decode()) == report
    os.close(heard)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_report_that_cannot_be_written_is_refused_and_the_one_before_stays(tmp_path):
    report, path = Report({}, ()), tmp_path / "report.json"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report.to_json(tmp_path / "nowhere" / "report.json")
    with pytest.raises(OSError, match=tmp_path.name):
        report.to_json(tmp_path)
    path.write_text("mine")
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("whoever runs this may write what is write-protected")
    with pytest.raises(PermissionError, match="report.json"):
        report.to_json(path)
    assert path.read_text() == "mine"


@posix
def test_links_of_the_hubs_cache_are_replaced_and_what_they_point_to_stays(tmp_path):
    Steering({"a": ([2.0], [0])}).save_pretrained(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in (CONFIG, TENSORS, CARD):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    Steering({"a": ([3.0], [0])}).save_pretrained(tmp_path / "snapshot")
    assert Steering.from_pretrained(tmp_path / "snapshot").weight("a") == [3]
    assert Steering.from_pretrained(tmp_path / "blobs").weight("a") == [2]
