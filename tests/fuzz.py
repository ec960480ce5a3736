"""Calls every function of lineas._core with arguments made wrong at random, and checks what must hold whatever comes.

    python tests/fuzz.py --calls 1000000 --seed 0        # many calls, in a process of their own: a crash is a finding
    python tests/fuzz.py --seed 0 --only 123456          # one of them again, here

A call returns or raises one of REFUSALS. It leaves every input as it was, and after a refusal also what it would have
changed in place; it keeps no reference; the same call gives the same bits after its memory was filled with garbage; and
resident memory stands still. Call k depends on the seed and on k alone. Exit status 1: something was found.
"""

import argparse
import contextlib
import faulthandler
import gc
import math
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent / "core"))
from test_core_invariants import IN_PLACE, arguments, variants

REFUSALS = (TypeError, ValueError, MemoryError, OverflowError, BufferError)
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
STATM = Path("/proc/self/statm")
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


class Finding(Exception):
    """A promise that a call broke."""


# ---- calls that work ----

# Of n, m, columns, batch, tokens, dim, count: one, odd, past a tile of 64, past a block of 1024, past one of 8192.
SIZES = [
    (5, 4, 18, 2, 3, 5, 12), (3, 1, 1, 1, 1, 2, 4), (9, 9, 3, 3, 1, 17, 30), (4, 11, 65, 1, 9, 33, 62),
    (66, 7, 2, 5, 4, 9, 258), (17, 16, 130, 2, 2, 64, 130), (230, 190, 2, 1, 3, 1030, 600),
    (12, 30, 64, 4, 70, 3, 18000),
]  # fmt: skip


def other_precisions(given: dict) -> list[dict]:
    """The same call in float64, and with activations in halves (float16, and bfloat16 as int16)."""
    floats = {name: a for name, a in given.items() if isinstance(a, np.ndarray) and a.dtype == np.float32}
    activations = {name: a for name, a in floats.items() if a.ndim == 3}
    changes = [{name: a.astype(np.float64) for name, a in floats.items()}] if floats else []
    if activations:
        changes += [{name: a.astype(kind) for name, a in activations.items()} for kind in (np.float16, np.int16)]
    return [given, *({**given, **change} for change in changes)]


def channels_first(given: dict) -> list[dict]:
    if "channels_first" not in given:
        return [given]
    turned = {name: a.swapaxes(1, 2).copy() for name, a in given.items() if isinstance(a, np.ndarray) and a.ndim == 3}
    return [given, {**given, **turned, "channels_first": True}]


def working_calls(kernel: str) -> list[dict]:
    """Small ones first."""
    calls = []
    for sizes in SIZES:
        right = arguments(kernel, sizes=sizes)
        for change in variants(kernel):
            for turned in channels_first({**right, **change}):
                calls += other_precisions(turned)
    return calls


# ---- what is wrong with one argument: every function takes random, the call, a name, and changes the call ----


class Hostile:
    """Whatever it is asked for, it raises."""

    def refuse(self, *_, **__):
        raise ValueError("hostile")

    __array__ = __float__ = __index__ = __int__ = __bool__ = __len__ = __iter__ = __getitem__ = __buffer__ = refuse


class Subclass(np.ndarray):
    pass


HUGE, LARGE = 2**40, 20_000  # entries: more than there is memory, more than is looked at or copied
DTYPES = [
    np.dtype(code) for code in (*"?bBhHiIlLefdgFDO", "S3", "U2", "M8[s]", "m8[s]", "V5", ">f4", ">f8", ">i4", ">i8")
]
DTYPES.append(np.dtype([("a", "f4"), ("b", "i8")]))
INTS = [-(2**70), -(2**63), -HUGE, -1, 0, 1, 2, 3, 5, 16, 257, 4097, 2**31, HUGE, 2**63 - 1, 2**63, 2**64, 2**70]
FLOATS = [-math.inf, -1e308, -1.0, -0.0, 0.0, 5e-324, 1e-40, 0.3, 1.0, 1.5, 2.0, 7.3, 1e39, 1e308, math.inf, math.nan]
OBJECTS = [
    None, True, "x", b"bytes", bytearray(8), memoryview(b"12345678"), [], [1.0], [[1.0], [2.0, 3.0]], (), {}, 1j, ...,
    np.float32(1), np.int64(2), np.bool_(True), np.float32, object(), Hostile(), np.random.default_rng(0), len,
]  # fmt: skip
SPECIAL = {
    "f": [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1e-40, 3e38, -3e38, 1e300],
    "i": [-(2**63), -HUGE, -1, 0, 1, 2, 3, 7, 100, 2**31, HUGE, 2**63 - 1],
    "u": [0, 1, 2**63, 2**64 - 1],
}


def object_instead(rng, given, name):
    given[name] = rng.choice(OBJECTS)


def number_instead(rng, given, name):
    given[name] = rng.choice(rng.choice((INTS, FLOATS)))


def other_dtype(rng, given, name):
    given[name] = np.zeros(given[name].shape, rng.choice(DTYPES))


def other_rank(rng, given, name):
    a, axes = np.asarray(given[name]), rng.randrange(6)
    if axes >= a.ndim:
        given[name] = a.reshape((1,) * (axes - a.ndim) + a.shape)
    elif a.size:
        given[name] = a[(0,) * (a.ndim - axes)]


def empty(rng, given, name):
    shape = list(given[name].shape)
    if shape:
        shape[rng.randrange(len(shape))] = 0
    given[name] = np.zeros(shape, given[name].dtype)


def other_shape(rng, given, name):
    """One dimension longer or shorter, by repetition."""
    a = given[name]
    if a.size and a.ndim:
        axis = rng.randrange(a.ndim)
        count = rng.choice((1, 2, a.shape[axis] - 1, a.shape[axis] + 1, 2 * a.shape[axis], 200))
        if a.size // a.shape[axis] * count < LARGE:
            given[name] = np.take(a, range(count), axis, mode="clip")


def other_size_everywhere(rng, given, name):
    """All dimensions of one length get another: what belongs together still does."""
    a = given[name]
    if a.size and a.ndim:
        old, new = rng.choice(a.shape), rng.choice((1, 2, 3, 8, 16, 17, 64, 65, 100))
        for other, b in given.items():
            if isinstance(b, np.ndarray) and math.prod(new if count == old else count for count in b.shape) < LARGE:
                for axis in range(b.ndim):
                    if b.shape[axis] == old:
                        b = np.take(b, range(new), axis, mode="clip")
                given[other] = b


def other_strides(rng, given, name):
    a = given[name]
    if not a.size or not a.ndim:
        return
    way = rng.randrange(7)
    if way == 0:
        a = a[::-1]
    elif way == 1:
        a = np.repeat(a, 2, axis=-1)[..., ::2]
    elif way == 2:
        a = np.asfortranarray(a)
    elif way == 3:
        a = np.broadcast_to(a[:1], a.shape)
    elif way == 4:
        a = a.T
    elif way == 5 and not a.dtype.hasobject:  # windows that overlap; of halves of pointers even a copy would be a crash
        a = np.lib.stride_tricks.as_strided(a, a.shape, tuple(stride // 2 for stride in a.strides))
    elif way == 6 and a.itemsize > 1 and not a.dtype.hasobject:  # misaligned
        room = np.zeros(a.nbytes + a.itemsize, np.uint8)
        moved = room[rng.randrange(1, a.itemsize) :][: a.nbytes].view(a.dtype).reshape(a.shape)
        moved[...] = a
        a = moved
    given[name] = a


def locked(rng, given, name):
    given[name] = given[name].copy()
    given[name].flags.writeable = False


def subclass(rng, given, name):
    a = given[name]
    way = rng.randrange(4)
    if way == 0 and a.ndim == 2:
        given[name] = a.view(np.matrix)
    elif way == 1:
        given[name] = np.ma.masked_array(a, mask=np.zeros(a.shape, bool))
    else:
        given[name] = a.view(Subclass if way == 2 else np.memmap)


def huge(rng, given, name):
    """More entries than there is memory, all in the same place."""
    dims = max(1, given[name].ndim + rng.choice((0, 0, 0, 1)))
    shape = rng.choice(((HUGE, 2**19), (2**58,), (2, 2**57), (1, 2**32 + 1), (2**26 + 1, 1), (2**31, 2**28)))
    shape = (*shape, 1, 1, 1, 1)[:dims]
    given[name] = np.lib.stride_tricks.as_strided(np.zeros(1, given[name].dtype), shape, (0,) * dims)


def special_values(rng, given, name):
    a = given[name]
    if a.size and a.dtype.kind in SPECIAL and a.size < LARGE:
        a = np.array(a)
        flat = a.reshape(-1)
        for _ in range(rng.choice((1, 1, 2, 5))):
            value = rng.choice(SPECIAL[a.dtype.kind])
            flat[rng.randrange(a.size)] = np.array(value).astype(a.dtype)
        given[name] = a


def extreme_everywhere(rng, given, name):
    a = given[name]
    if a.dtype.kind in SPECIAL:
        given[name] = np.full(a.shape, rng.choice(SPECIAL[a.dtype.kind][:4]), dtype=np.float64).astype(a.dtype)


def same_array(rng, given, name):
    """Another argument's array as this one, too."""
    given[name] = given[rng.choice(arrays_of(given))]


def views_of_one_buffer(rng, given, name):
    """This argument and another lie in one buffer: apart, side by side, or partly one on the other."""
    other = rng.choice(arrays_of(given))
    a, b = given[name], given[other]
    if other == name or not a.size or not b.size or a.dtype.hasobject or b.dtype.hasobject or a.size + b.size > LARGE:
        return
    room = np.zeros(a.nbytes + b.nbytes + 64, np.uint8)
    shift = rng.randrange(a.nbytes + 64) // b.itemsize * b.itemsize
    for key, x, at in ((name, a, 0), (other, b, shift)):
        given[key] = room[at : at + x.nbytes].view(x.dtype).reshape(x.shape)
        given[key][...] = x


OF_ARRAYS = [
    object_instead, number_instead, other_dtype, other_rank, empty, other_shape, other_size_everywhere, other_strides,
    locked, subclass, huge, special_values, extreme_everywhere, same_array, views_of_one_buffer,
]  # fmt: skip
OF_NUMBERS = [object_instead, number_instead, number_instead, number_instead]


def arrays_of(given: dict) -> list[str]:
    return [name for name, x in given.items() if isinstance(x, np.ndarray)]


def draw(rng, kernel: str, calls: list[dict]) -> list:
    """The arguments of one call."""
    given = dict(calls[int(len(calls) * rng.random() ** 3)])
    if "threads" in given:
        given["threads"] = rng.choices((1, 2, 3, 16), (200, 20, 4, 1))[0]
    for name in IN_PLACE.get(kernel, ()):
        if given[name] is not None:
            given[name] = given[name].copy()
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 3))):
        name = rng.choice(list(given))
        if isinstance(given[name], np.ndarray) and given[name].size > LARGE:
            continue
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError):  # NumPy makes no such array
            rng.choice(OF_ARRAYS if isinstance(given[name], np.ndarray) else OF_NUMBERS)(rng, given, name)
    values = list(given.values())
    wrong = rng.randrange(200)  # now and then, how many there are
    return values[: rng.randrange(len(values))] if wrong == 0 else [*values, None] if wrong == 1 else values


# ---- what must hold ----


def content(x) -> bytes | None:
    """The bytes of an array, unless there are too many to look at, or none of its own."""
    return x.tobytes() if isinstance(x, np.ndarray) and x.size < LARGE and not x.dtype.hasobject else None


def poison(result, fill: int) -> None:
    """Free memory of the sizes that the call takes, full of garbage."""
    sizes = [x.nbytes for x in result if isinstance(x, np.ndarray)] + [64, 1024, 40_000, 130_000]
    garbage = [np.full(size, fill, np.uint8) for size in sizes for _ in range(3)]
    del garbage


def parts(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def bits(result) -> list:
    return [content(x) if isinstance(x, np.ndarray) else repr(x) for x in parts(result)]


def same_after_poison(function, values: list, changed: list[int]) -> bool:
    """Whether the call gives the same bits twice, each time in other garbage."""
    seen, result = [], ()
    for fill in (0x01, 0xFF):
        again = [x.copy() if k in changed and isinstance(x, np.ndarray) else x for k, x in enumerate(values)]
        poison(parts(result), fill)
        result = function(*again)
        seen.append(bits(result) + [content(again[k]) for k in changed])
    return seen[0] == seen[1]


def attempt(function, values: list) -> str:
    """Make the call: "returned", or the name of its refusal. Raises Finding."""
    try:
        result = function(*values)
    except REFUSALS as error:
        return next(kind.__name__ for kind in reversed(REFUSALS) if isinstance(error, kind))
    except Exception as error:
        raise Finding(f"raised {type(error).__name__}: {error}") from None
    for x in parts(result):
        if isinstance(x, np.ndarray) and any(isinstance(y, np.ndarray) and np.may_share_memory(x, y) for y in values):
            raise Finding("returned memory of an argument")
    return "returned"


def check_all(function, values: list, changed: list[int]) -> str:
    """The same, and look at everything before and after; changed says which arguments may change."""
    arrays = [k for k, x in enumerate(values) if isinstance(x, np.ndarray)]
    fresh = [x.copy() if k in changed and k in arrays and content(x) is not None else x for k, x in enumerate(values)]
    before = [content(values[k]) for k in arrays]
    references = [(sys.getrefcount(values[k]), sys.getrefcount(values[k].dtype)) for k in arrays]
    says = attempt(function, values)
    after = [(sys.getrefcount(values[k]), sys.getrefcount(values[k].dtype)) for k in arrays]
    if after != references:
        raise Finding(f"references to the arrays and their types: {references} before, {after} after")
    for k, old in zip(arrays, before, strict=True):
        if (says != "returned" or k not in changed) and content(values[k]) != old:
            raise Finding(f"argument {k} changed")
    if says == "returned" and not same_after_poison(function, fresh, changed):
        raise Finding("twice the same call, not the same bits: is there memory that was never written?")
    return says


# ---- many calls ----


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say, or AddressSanitizer keeps what was freed."""
    return int(STATM.read_text().split()[1]) * PAGE if STATM.exists() and not SANITIZED else 0


def run(core, calls, seed: int = 0, every: int = 8, at=None) -> Counter:
    """Calls of these numbers of all functions of core, each of the numbers `every` with all checks. at, which other
    processes may see, gets the number under way. Returns how often each (function, outcome) came. Raises Finding."""
    names = sorted(name for name in dir(core) if callable(getattr(core, name)) and not name.startswith("__"))
    work = {name: working_calls(name) for name in names}
    seen: Counter = Counter()
    rng, warm, settled = random.Random(), calls[len(calls) // 4], 0
    gc.collect()  # arrays of others that went during a call would count as references that it lost
    for k in calls:
        if at is not None:
            at.value = k
        if k == warm:
            settled = resident()
        rng.seed(seed << 40 | k)
        name = rng.choice(names)
        function, right = getattr(core, name), work[name]
        values = draw(rng, name, right)
        changed = [i for i, key in enumerate(right[0]) if key in IN_PLACE.get(name, ()) and i < len(values)]
        try:
            seen[name, check_all(function, values, changed) if k % every == 0 else attempt(function, values)] += 1
        except Finding as finding:
            shown = ", ".join(describe(x) for x in values)
            raise Finding(f"call {k} with seed {seed}: {name}({shown}): {finding}") from None
    grown = resident() - settled
    print(f"resident memory: {settled / 2**20:.1f} MiB after a quarter, {(grown + settled) / 2**20:.1f} MiB at the end")
    if len(calls) >= 10_000 and grown > LEAK * len(calls):
        raise Finding(f"resident memory grew by {grown} bytes")
    missing = [(name, what) for name in names for what in ("returned", "refused") if not counts(seen, name)[what]]
    if len(calls) >= 10_000 and missing:
        raise Finding(f"never seen: {missing}")
    return seen


LEAK = 64 + 2**22 / 10_000  # bytes a call: less than an array has, and room for what an allocator keeps


def describe(x) -> str:
    if isinstance(x, np.ndarray):
        return f"<{type(x).__name__} {x.dtype} {x.shape} strides {x.strides}>"
    return repr(x)[:60]


def counts(seen: Counter, name: str) -> dict[str, int]:
    mine = {what: count for (other, what), count in seen.items() if other == name}
    returned = mine.pop("returned", 0)
    return {"returned": returned, "refused": sum(mine.values()), **mine}


def child(options, at) -> None:
    faulthandler.enable()
    from lineas.core import _core

    print(f"{options.calls} calls of {_core.__file__}")
    try:
        seen = run(_core, range(options.calls), options.seed, options.every, at)
    except Finding as finding:
        sys.exit(f"FOUND: {finding}")
    kinds = ["returned", "refused", *(kind.__name__ for kind in REFUSALS)]
    print(f"{'':18}" + "".join(f"{kind:>14}" for kind in kinds))
    for name in sorted({name for name, _ in seen}):
        print(f"{name:18}" + "".join(f"{counts(seen, name).get(kind, 0):14}" for kind in kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=8, help="every so many calls, all checks (default 8)")
    parser.add_argument("--only", type=int, help="the number of the one call to make, in this process")
    options = parser.parse_args()
    if options.only is not None:
        from lineas.core import _core

        print(run(_core, [options.only], options.seed, 1))
        return
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    at = context.Value("q", 0, lock=False)
    process = context.Process(target=child, args=(options, at))
    process.start()
    while process.is_alive():
        before = at.value
        process.join(PATIENCE)
        if process.is_alive():
            print(f"{at.value} calls, {time.monotonic() - start:.0f} s", flush=True)
            if at.value == before > 0:
                process.kill()
    if process.exitcode < 0:
        sys.exit(f"FOUND: call {at.value} with seed {options.seed} ended the process, signal {-process.exitcode}")
    took = time.monotonic() - start
    print(f"{options.calls} calls, seed {options.seed}: {took:.0f} s, exit status {process.exitcode}")
    sys.exit(process.exitcode)


PATIENCE = 30  # seconds between reports; a call that takes longer hangs

if __name__ == "__main__":
    main()
