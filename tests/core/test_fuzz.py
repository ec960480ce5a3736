"""The fuzzer for a short while, in a process of its own; and that it notices what it is there for."""

import mmap
import multiprocessing
import os
import signal
from types import SimpleNamespace

import fuzz
import numpy as np
import pytest

from lineas.core import _core


@pytest.mark.process
def test_twenty_thousand_calls_find_nothing(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["fuzz", "--calls", "20000"])
    with pytest.raises(SystemExit) as end:
        fuzz.main()
    told = capfd.readouterr()
    assert end.value.code == 0, f"{end.value.code}\n{told.out}\n{told.err}"
    assert f"20000 calls of {_core.__file__}" in told.out
    assert "20000 calls, seed 0" in told.out


def changes_its_input(x, threads):
    result = _core.sort_values(x, threads)
    x[0, 0] += 1
    return result


def changes_its_input_and_refuses(x, threads):
    if x.flags.writeable and x.dtype == np.float32:
        x[...] = 7
    raise ValueError("no")


kept = []


def keeps_a_reference(x, threads):
    kept.append(x)
    return _core.sort_values(x, threads)


def leaks(x, threads):
    kept.append(mmap.mmap(-1, 1 << 13))  # new pages: a block of the heap may have been there before
    kept[-1].write(b"x" * (1 << 13))
    return _core.sort_values(x, threads)


def raises_something_else(x, threads):
    if np.ndim(x) == 3:
        raise RuntimeError("at last")
    return _core.sort_values(x, threads)


def leaves_memory_unwritten(x, threads):
    result = _core.sort_values(x, threads)
    return np.empty_like(result) if result.size == 18 else result


def returns_a_view(x, threads):
    _core.sort_values(x, threads)
    return x[:1]


def refuses_nothing(*given):
    return 1.0


def refuses_all(*given):
    raise TypeError


sees_memory = pytest.mark.skipif(fuzz.SANITIZED or not fuzz.STATM.exists(), reason="memory is not what the system says")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (changes_its_input, "argument 0 changed"),
        (changes_its_input_and_refuses, "argument 0 changed"),
        (keeps_a_reference, "references to the arrays"),
        pytest.param(leaks, "resident memory grew", marks=sees_memory),
        (raises_something_else, "raised RuntimeError: at last"),
        (leaves_memory_unwritten, "not the same bits"),
        (returns_a_view, "returned memory of an argument"),
        (refuses_nothing, "never seen: .*refused"),
        (refuses_all, "never seen: .*returned"),
    ],
)
def test_a_binding_that_breaks_a_promise_is_found(bad, says):
    with pytest.raises(fuzz.Finding, match=says):
        fuzz.run(SimpleNamespace(sort_values=bad), range(10_000))
    kept.clear()


def test_a_finding_names_the_call_that_shows_it_again():
    core = SimpleNamespace(sort_values=raises_something_else)
    with pytest.raises(fuzz.Finding, match="^call [0-9]+ with seed 3: sort_values") as found:
        fuzz.run(core, range(10_000), seed=3)
    number = int(str(found.value).split()[1])
    with pytest.raises(fuzz.Finding) as again:
        fuzz.run(core, [number], seed=3, every=1)
    assert str(again.value) == str(found.value)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL") or os.name == "nt", reason="needs signals")
@pytest.mark.process
def test_a_crash_is_a_finding_with_its_call(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fuzz", "--calls", "500"])
    monkeypatch.setattr(fuzz, "child", crash)
    fork = multiprocessing.get_context("fork")  # the child does nothing that a fork could spoil, and starts at once
    monkeypatch.setattr(fuzz.multiprocessing, "get_context", lambda kind: fork)
    with pytest.raises(SystemExit, match="^FOUND: call 321 with seed 0 ended the process, signal 9"):
        fuzz.main()


def crash(options, at):
    at.value = 321
    os.kill(os.getpid(), signal.SIGKILL)
