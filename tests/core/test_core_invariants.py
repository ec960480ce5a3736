"""What holds for every kernel: any number of threads, refusals, references, memory."""

import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest
import torch
from oracle import THREADS, assert_same_bits

from lineas.core import _core
from lineas.core import threads as thread_rules

IN_PLACE = {
    "sgd": ("x", "velocity"), "adam": ("x", "first", "second"), "affine_sparse": ("h",),
    "unit_loss": ("cost", "gradient"), "ridge": ("gradient",), "scale_columns": ("slopes",),
    "quadratic_make": ("low", "high", "blocks", "correction"), "quadratic_newton": ("out",),
    "quadratic_steps": ("steps", "p"), "quadratic_ahead": ("ahead", "slope"), "quadratic_settle": ("fresh", "pace"),
    "quadratic_minimise": ("points", "ahead", "slope", "pace"), "quadratic_solve": ("out", "pace", "room"),
}  # fmt: skip
OPTIONAL = {
    "wasserstein": ("y_index",),
    "wasserstein_grad": ("y_index", "coefficient"),
    "affine_pool_grad": ("grad_out",),
    "sgd": ("velocity",),
    "proximal_step": ("gradient", "scales", "order"),
    "quadratic_value": ("pace", "moves"),
    "quadratic_minimise": ("order", "moves"),
    "quadratic_solve": ("order", "moves"),
} | {f"quadratic_{stage}": ("moves",) for stage in ("make", "newton", "steps", "ahead", "settle")}


PAIRS = dict.fromkeys(("mean_shift", "gaussian_map", "linear_map"), ("x", "y"))
PAIRS["rank"] = ("positive", "negative")

# A dimension that no other argument shares.
FREE = {("permutation_null", "x"): 1, ("product", "a"): 0, ("product", "b"): 1}
FREE |= {("unit_loss", "y"): 0, ("scale_columns", "slopes"): 0}
FREE |= {(kernel, name): 0 for kernel, names in PAIRS.items() for name in names}


# Sizes n, m, columns, batch, tokens, dim, count. Big ones are shared among threads: a thread takes 8192 of count.
SMALL, BIG = (5, 4, 18, 2, 3, 5, 12), (33, 20, 300, 17, 9, 33, 40_000)


def arguments(kernel: str, big: bool = False, sizes: tuple | None = None) -> dict:
    """A call that works: arguments in their order, by name."""
    rng = np.random.default_rng(0)
    n, m, columns, batch, tokens, dim, count = sizes or (BIG if big else SMALL)

    def reals(*shape):
        return rng.normal(size=shape).astype(np.float32)

    y, y_index = _core.sort_columns(reals(m, columns), 1)
    samples = {"x": reals(n, columns), "y": y, "y_index": y_index}
    samples |= {"x_weights": rng.dirichlet(np.ones(n)), "y_weights": rng.dirichlet(np.ones(m))}
    maps = {"h": reals(batch, tokens, dim), "scale": reals(dim)}
    pool = {"pool": np.full((batch, tokens), 1 / tokens, np.float32), "channels_first": False, "threads": 2}
    gradients = {"grad_out": reals(batch, tokens, dim), "grad_pooled": reals(batch, dim)}
    vectors = {name: np.abs(reals(count)) for name in ("x", "first", "second", "velocity", "gradient", "scales")}
    groups = {"offsets": np.array([0, 2, 2, count // 2]), "order": rng.permutation(count // 2), "step": 0.5}
    strengths = {"l1": 0.1, "group": 0.01, "l1_bias": 0.2, "group_bias": 0.02, "ridge": 0.3, "threads": 2}

    units, rows = count // 2, 3
    model = {
        "x": vectors["x"], "gradient": vectors["gradient"],
        "blocks": rng.uniform(size=(3, units)) + np.array([[1], [0], [1]]),
        "correction": np.full((2 * rows, 2 * rows), 0.01), "moves": reals(rows, count), "changes": reals(rows, count),
        "offsets": groups["offsets"], "damping": 0.3, "threads": 2,
    }  # fmt: skip
    pace = {"pace": rng.uniform(size=2 + 4 * rows)}
    box = {"low": -vectors["first"], "high": vectors["second"], "steps": vectors["scales"]}
    ends = {"group_offsets": np.array([0, 1, units]), "order": groups["order"]}

    def like_x(*names):
        return {name: reals(count) for name in names}

    def same_sources(rows, n):  # of 512 relabellings, the first n rows
        return np.tile((np.arange(rows) < n)[:, None], (2, 1, 4)) * np.uint64(2**64 - 1)

    def some(*names):
        return {name: vectors[name] for name in names}

    return {
        "sort_columns": lambda: {"x": samples["x"], "threads": 2},
        "sort_values": lambda: {"x": samples["x"], "threads": 2},
        "first_nonfinite": lambda: {"x": samples["x"]},
        "wasserstein": lambda: {**samples, "p": 2.0, "threads": 2},
        "wasserstein_grad": lambda: {**samples, "coefficient": rng.uniform(size=columns), "p": 2.0, "threads": 2},
        "permutation_null": lambda: {"x": samples["x"], "labels": same_sources(n, 2), "n": 2, "relabellings": 257,
                                     "p": 2.0, "threads": 2},
        "mean_shift": lambda: {"x": samples["x"], "y": samples["y"], "threads": 2},
        "gaussian_map": lambda: {"x": samples["x"], "y": samples["y"], "threads": 2},
        "linear_map": lambda: {"x": samples["x"], "y": samples["y"], "threads": 2},
        "rank": lambda: {"positive": samples["x"], "negative": samples["y"], "threads": 2},
        "product": lambda: {"a": reals(3 * n, m), "b": reals(m, columns), "threads": 2},
        "affine_pool": lambda: {**maps, "shift": reals(dim), **pool},
        "affine_pool_grad": lambda: {**gradients, **maps, **pool},
        "affine_sparse": lambda: {"h": reals(batch, dim, 3), "support": np.arange(1, dim, 2),
                                  "scale": reals(dim // 2), "shift": reals(dim // 2), "threads": 2},
        "proximal_step": lambda: {**some("x", "gradient", "scales"), **groups, **strengths},
        "sgd": lambda: {**some("x", "velocity", "gradient"), "rate": 0.1, "momentum": 0.9, "threads": 2},
        "adam": lambda: {**some("x", "first", "second", "gradient"), "rate": 0.1, "beta1": 0.9, "beta2": 0.9,
                         "epsilon": 1e-8, "decay": 0.1, "iteration": 3, "threads": 2},
        "unit_loss": lambda: {"cost": np.zeros(columns), "gradient": reals(n, columns), "x": samples["x"],
                              "y": samples["y"], "coefficient": rng.uniform(size=columns), "p": 2.0, "threads": 2},
        "ridge": lambda: {**like_x("gradient"), **some("x"), "stretch": rng.uniform(size=units),
                          "cross": rng.uniform(size=units), "shift": rng.uniform(size=units), "strength": 0.3,
                          "threads": 2},
        "dot": lambda: {"a": rng.normal(size=count), "b": rng.normal(size=count), "threads": 2},
        "largest": lambda: {"x": samples["x"], "threads": 2},
        "move_sums": lambda: {**like_x("to", "from", "after", "before"), "threads": 2},
        "scale_columns": lambda: {"slopes": reals(n, columns), "factor": rng.uniform(size=columns), "threads": 2},
        "quadratic_make": lambda: {**like_x("low", "high"), "curvature": 1 + rng.uniform(size=(3, units)), "oldest": 1,
                                   "loss": 0.5, **model},
        "quadratic_value": lambda: {**like_x("point"), **pace, **model},
        "quadratic_newton": lambda: {**like_x("out"), "ridge": 0.1, **model},
        "quadratic_steps": lambda: {**like_x("steps"), "p": rng.normal(size=count),
                                    "direction": rng.normal(size=count), **model},
        "quadratic_ahead": lambda: {**like_x("ahead", "slope", "point", "before"), **pace, **model},
        "quadratic_settle": lambda: {**like_x("fresh"), **pace, **like_x("point", "before"), **box, **model},
        "quadratic_minimise": lambda: {"points": reals(3, count), **like_x("ahead", "slope"), **pace, **box, **ends,
                                       **{name: x for name, x in strengths.items() if name != "threads"}, **model},
        "quadratic_solve": lambda: {**like_x("out"), **pace, "room": rng.normal(size=count), "low": box["low"],
                                    "high": box["high"], "group_offsets": groups["offsets"], "order": None,
                                    **{name: x for name, x in strengths.items() if name != "threads"}, **model},
        "cosine": lambda: {"rate": 0.1, "floor": 0.01, "at": 2, "total": 5},
    }[kernel]()  # fmt: skip


# Whatever the extension offers: a kernel added without an entry above fails here.
KERNELS = sorted(name for name in dir(_core) if callable(getattr(_core, name)) and not name.startswith("__"))
THREADED = [name for name in KERNELS if "threads" in arguments(name)]


def call(kernel: str, given: dict):
    return getattr(_core, kernel)(*given.values())


def outcome(kernel: str, given: dict):
    """What a call returns, or what it changes."""
    given = {name: x.copy() if name in IN_PLACE.get(kernel, ()) and x is not None else x for name, x in given.items()}
    returned = call(kernel, given)
    return (*(given[name] for name in IN_PLACE[kernel]), returned) if kernel in IN_PLACE else returned


# ---- threads ----


def without_memory(kernel: str) -> dict:
    """The model knows no moves: nothing that comes with them, and a pace without their products."""
    pace = {"pace": np.array([1.0, 0.0])} if "pace" in arguments(kernel) else {}
    oldest = {"oldest": 0} if "oldest" in arguments(kernel) else {}
    return {"moves": None, "changes": None, "correction": None, **pace, **oldest}


def variants(kernel: str) -> list[dict]:
    """Changes of the arguments that take other paths through the kernel."""
    uniform = {"x_weights": None, "y_weights": None}
    if kernel.startswith("quadratic_"):
        return [{}, without_memory(kernel), *({
            "quadratic_value": [{"pace": None}],
            "quadratic_minimise": [{"order": None}, {"group": 0.0, "group_bias": 0.0},
                                   {"order": None, "group_offsets": arguments(kernel, True)["offsets"]}],
            "quadratic_solve": [{"group": 0.0, "group_bias": 0.0},
                                {"order": np.arange(arguments(kernel, True)["offsets"][-1])[::-1].copy()}],
        }.get(kernel, []))]  # fmt: skip
    if kernel.startswith("wasserstein"):
        return [{**change, "p": p} for p in (1.0, 1.5, 2.0) for change in ({}, uniform)]
    if kernel == "permutation_null":
        return [{"p": p} for p in (1.0, 1.5, 2.0)]
    return {
        "affine_pool": [{}, {"channels_first": True, "pool": np.full((17, 33), 1 / 33, np.float32)}],
        "affine_pool_grad": [{}, {"grad_out": None}],
        "sgd": [{}, {"velocity": None, "momentum": 0.0}],
        "unit_loss": [{"p": p} for p in (1.0, 1.5, 2.0)],
        "proximal_step": [{}, {"scales": None}, {"order": None}, {"gradient": None, "scales": None, "order": None}],
    }.get(kernel, [{}])


@pytest.mark.parametrize("kernel", THREADED)
def test_bits_do_not_depend_on_threads(kernel):
    for change in variants(kernel):
        given = {**arguments(kernel, big=True), **change}
        if kernel == "affine_pool" and given["channels_first"]:
            given["scale"], given["shift"] = given["scale"][:9].copy(), given["shift"][:9].copy()
        results = [outcome(kernel, {**given, "threads": threads}) for threads in THREADS]
        for result in results[1:]:
            assert_same_bits(result, results[0])


def test_thread_count_is_what_was_asked_else_torchs_and_one_where_the_work_is_small():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert thread_rules.thread_count() == thread_rules.thread_count(None, thread_rules.SMALL) == 2
        assert thread_rules.thread_count(None, thread_rules.SMALL - 1) == 1
        assert thread_rules.thread_count(5, 1) == thread_rules.thread_count(5) == 5
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_at_once_give_the_same_results():
    jobs = {kernel: arguments(kernel, big=True) for kernel in THREADED}
    alone = {kernel: outcome(kernel, given) for kernel, given in jobs.items()}
    start = threading.Barrier(8)

    def work(_):
        start.wait(timeout=30)
        return [{kernel: outcome(kernel, given) for kernel, given in jobs.items()} for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for result in results:
                for kernel in jobs:
                    assert_same_bits(result[kernel], alone[kernel])


# ---- what the binding refuses ----


def misaligned(a: np.ndarray) -> np.ndarray:
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    copy = buffer[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def refusals(kernel: str):
    """(what is wrong, arguments, exception, what its message must hold) for every way to misuse every argument."""
    right = arguments(kernel)
    arrays = {name: a for name, a in right.items() if isinstance(a, np.ndarray)}
    for name, a in arrays.items():
        mine = f"^{name}: expected "

        def wrong(what, value, error, says, name=name):
            return what.format(name), {**right, name: value}, error, says

        any_rank = kernel == "first_nonfinite"
        any_type = kernel.startswith("affine") and name == "h"  # halves as well
        either = any_rank or kernel.startswith("sort_") or (name == "a" and kernel != "dot")
        either = either or name == "positive"  # float32 or float64
        either = either or (name == "x" and bool({"y", "labels"} & set(arrays)))
        kind = "a float32 or float64 array" if either else "an array of float32" if any_type else "an array|dtype"
        yield wrong("{} is a list", a.tolist(), TypeError, f"{mine}({kind}).*got .*list")
        other = np.int32 if any_type else np.float16
        yield wrong(f"{{}} is {other.__name__}", np.ones(a.shape, other), TypeError,
                    f"{mine}({kind}).*got dtype.*{other.__name__}")  # fmt: skip
        if a.itemsize > 1:
            yield wrong("{} is byteswapped", a.astype(a.dtype.newbyteorder()), TypeError, f"{mine}dtype.*got dtype.*>")
            yield wrong("{} is misaligned", misaligned(a), ValueError, f"{mine}a C-contiguous, aligned")
        yield wrong("{} is empty", a[:0], ValueError, f"{mine}at least one entry, got none")
        yield wrong("{} is strided", np.repeat(a, 2, axis=-1)[..., ::2], ValueError, f"{mine}a C-contiguous")
        if name not in OPTIONAL.get(kernel, ()):
            yield wrong("{} is None", None, TypeError, f"{mine}.*got .*NoneType")
        if not any_rank:
            yield wrong("{} has a dimension more", a[None], ValueError, f"{mine}{a.ndim} dim.*got {a.ndim + 1}$")
            yield wrong("{} has a dimension less", a[0].copy() if a.ndim > 1 else np.array(a[0]), ValueError,
                        f"{mine}{a.ndim} dim.*got {a.ndim - 1}$")  # fmt: skip
        alone = len(arrays) == 1 or (kernel, name) == ("affine_sparse", "h")  # of any shape
        for axis in range(0 if alone else a.ndim):
            if axis == FREE.get((kernel, name)):
                continue
            longer = np.concatenate([a, np.take(a, [0], axis)], axis)
            yield wrong(f"{{}} is longer in dimension {axis}", longer, ValueError, f"^({'|'.join(arrays)}): expected ")
        if name in IN_PLACE.get(kernel, ()):
            locked = a.copy()
            locked.flags.writeable = False
            yield wrong("{} is read-only", locked, ValueError, f"{name} is read-only")
        of_finite = kernel.startswith(("wasserstein", "sort_", "permutation_null")) and name in ("x", "y")
        if of_finite or kernel in PAIRS:
            for bad in (np.nan, np.inf):
                spoilt = a.copy()
                spoilt[1, 2] = bad
                yield wrong(f"{{}} holds {bad}", spoilt, ValueError, f"{mine}finite values.*flat position 20$")

    def instead(what, error, says, **changes):
        return what, {**right, **changes}, error, says

    if "threads" in right:
        for threads in (0, -3, 4097):
            yield instead(
                f"threads {threads}", ValueError, f"threads: expected 1 to 4096, got {threads}", threads=threads
            )
        yield instead("threads 2.0", TypeError, "float", threads=2.0)
    if "support" in right:
        for bad in ([-1, 3], [1, 5], [3, 1], [1, 1]):
            yield instead(f"support {bad}", ValueError, "^support: expected an ascent from 0 to at most 4",
                          support=np.array(bad))  # fmt: skip
    if "y_index" in right:
        for bad in (-1, 4):
            y_index = right["y_index"].copy()
            y_index[2, 3] = bad
            yield instead(f"an index of {bad}", ValueError, "y_index: expected entries from 0 to 3", y_index=y_index)
        for p in (0.99, -1.0, np.nan):
            yield instead(f"p {p}", ValueError, "p: expected at least 1", p=p)
        for name in ("x_weights", "y_weights"):
            yield instead(f"no {name}", TypeError, f"{name}: expected an array, got .*NoneType", **{name: None})
        yield instead("weights without an index", TypeError, "y_index: expected an array, got", y_index=None)
        yield instead("y in another precision", TypeError, "y: expected dtype.'float32'., got dtype.'float64'",
                      y=right["y"].astype(np.float64))  # fmt: skip
    if "labels" in right:
        for block, word, bit, flipped, got in ((0, 0, 0, 1, 1), (1, 3, 63, 3, 3)):  # also a relabelling past the last
            labels = right["labels"].copy()
            labels[block, flipped, word] ^= np.uint64(1) << np.uint64(bit)
            number = 256 * block + 64 * word + bit
            says = f"labels: expected 2 sources in every relabelling, got {got} in number {number}$"
            yield instead(f"{got} sources", ValueError, says, labels=labels)
        for changes in ({"n": 0}, {"n": 5}, {"n": -1}, {"relabellings": 1}, {"relabellings": -1}):
            yield instead(
                f"{changes}", ValueError, "expected 1 to 4 sources and at least 2 relabellings, got", **changes
            )
        yield instead("too few words", ValueError, "labels: expected 3 entries in dimension 0, got 2", relabellings=513)
        yield instead("p 0.99", ValueError, "p: expected at least 1", p=0.99)
    if kernel == "adam":
        odd = {name: a[:11].copy() for name, a in arrays.items()}
        yield instead("an odd number of entries", ValueError, r"x: expected \[weights, biases\].* got 11", **odd)
    if "offsets" in right:
        for bad in ([0, 4, 2, 6], [0, 2, 5], [0, 2, 7], [1, 2, 6], [0], [6], [0, -1, 6], [-1, 2, 6], [0, 2, 12]):
            yield instead(f"offsets {bad}", ValueError, "offsets: expected an ascent from 0 to half of the 12 entries",
                          offsets=np.array(bad))  # fmt: skip
    if "oldest" in right:
        for bad in (-1, 3):
            yield instead(f"oldest {bad}", ValueError, f"oldest: expected one of 3 rows, got {bad}", oldest=bad)
    if "moves" in right:
        yield instead("changes without moves", ValueError, "moves: expected an array with changes and", moves=None)
        many = {"moves": np.zeros((65, 12), np.float32), "changes": np.zeros((65, 12), np.float32)}
        yield instead("too many rows", ValueError, "moves: expected at most 64 rows, got 65", **many)
    if "group_offsets" in right:
        yield instead("groups that end early", ValueError, "group_offsets: expected an ascent from 0 to half of the 12",
                      group_offsets=np.array([0, 5]))  # fmt: skip
    if "order" in right:
        for bad in ([0, 1, 2, 3, 4, 4], [-1, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6], [2**40, 1, 2, 3, 4, 5]):
            yield instead(f"order {bad}", ValueError, "order: expected every unit from 0 to 5 once",
                          order=np.array(bad))  # fmt: skip
        for bad in (-1.0, np.nan):
            if "step" in right:
                yield instead(f"step {bad}", ValueError, "step: expected at least 0", step=bad)
            for name in ("l1", "group", "l1_bias", "group_bias", "ridge"):
                yield instead(f"{name} {bad}", ValueError, "ridge: expected strengths of at least 0", **{name: bad})


REFUSALS = {f"{kernel}: {what}": (kernel, *rest) for kernel in KERNELS for what, *rest in refusals(kernel)}


@pytest.mark.parametrize("case", REFUSALS)
def test_binding_refuses_and_says_why_and_keeps_no_reference(case):
    kernel, given, error, says = REFUSALS[case]
    inputs = [x for x in given.values() if isinstance(x, (np.ndarray, list))]
    before = [sys.getrefcount(x) for x in inputs]
    content = [np.array(x) for x in inputs]
    for _ in range(50):
        with pytest.raises(error, match=says):
            call(kernel, given)
    assert [sys.getrefcount(x) for x in inputs] == before
    assert_same_bits(tuple(np.array(x) for x in inputs), tuple(content))


@pytest.mark.parametrize("kernel", KERNELS)
def test_calls_with_too_few_or_too_many_arguments_are_refused(kernel):
    given = list(arguments(kernel).values())
    for wrong in ([], given[:-1], [*given, 1]):
        with pytest.raises(TypeError, match="argument"):
            getattr(_core, kernel)(*wrong)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "cosine"])
def test_calls_leak_neither_references_nor_memory_whether_they_succeed_or_fail(kernel):
    right = arguments(kernel)
    failing = [given for name, given, *_ in REFUSALS.values() if name == kernel]
    inputs = [x for x in right.values() if isinstance(x, np.ndarray)]

    def work(times):
        for _ in range(times):
            call(kernel, right)
            for given in failing:
                try:
                    call(kernel, given)
                except (TypeError, ValueError):
                    continue
                raise AssertionError("not refused")

    inputs += [np.dtype(name) for name in ("float32", "float64", "int32", "int64")]  # messages name them
    before = [sys.getrefcount(x) for x in inputs]
    work(40)
    assert all(sys.getrefcount(x) < count + 10 for x, count in zip(inputs, before, strict=True))
    tracemalloc.start()  # NumPy's buffers and the kernels' scratch are traced, too
    try:
        work(2)
        grown = []
        for _ in range(3):  # what Python sets aside for itself comes once, a leak every time
            start, _ = tracemalloc.get_traced_memory()
            work(40)
            grown.append(tracemalloc.get_traced_memory()[0] - start)
    finally:
        tracemalloc.stop()
    assert min(grown) < 40 * 16  # a leaked array is 100 bytes and more, each time


def in_one_buffer(given: dict, first: str, second: str, overlap: bool) -> dict:
    """The second argument begins with the last bytes of the first, or just after it."""
    a, b = given[first], given[second]
    at = (a.nbytes - 1) // b.itemsize * b.itemsize if overlap else -(-a.nbytes // b.itemsize) * b.itemsize
    room = np.zeros(at + b.nbytes + a.nbytes, np.uint8)
    views = {first: room[: a.nbytes].view(a.dtype), second: room[at : at + b.nbytes].view(b.dtype)}
    for name in sorted(views, key=lambda name: name == "support"):  # checked by its values
        views[name] = views[name].reshape(given[name].shape)
        views[name][...] = given[name]
    return {**given, **views}


@pytest.mark.parametrize("kernel", IN_PLACE)
def test_what_changes_in_place_shares_no_memory_with_another_argument(kernel):
    right = arguments(kernel)
    arrays = [name for name, x in right.items() if isinstance(x, np.ndarray)]
    for pair in permutations(arrays, 2):
        if not set(pair) & set(IN_PLACE[kernel]):
            continue
        call(kernel, in_one_buffer(right, *pair, overlap=False))
        given = in_one_buffer(right, *pair, overlap=True)
        before = [given[name].tobytes() for name in arrays]
        names = f"{pair[0]}, {pair[1]}|{pair[1]}, {pair[0]}"
        with pytest.raises(ValueError, match=f"^({names}): expected arrays that share no memory"):
            call(kernel, given)
        assert [given[name].tobytes() for name in arrays] == before


def test_arrays_that_are_only_read_may_be_the_same():
    square = np.random.default_rng(0).normal(size=(6, 6))
    assert_same_bits(_core.product(square, square, 1), _core.product(square, square.copy(), 1))


def test_optional_arguments_may_be_left_out():
    for kernel, names in OPTIONAL.items():
        for name in names:
            along = {"y_index": {"x_weights": None, "y_weights": None}, "velocity": {"momentum": 0.0}}.get(name, {})
            along = without_memory(kernel) if name == "moves" else along
            call(kernel, {**arguments(kernel), **along, name: None})
    with pytest.raises(ValueError, match="velocity: expected an array where momentum is not 0"):
        call("sgd", {**arguments("sgd"), "velocity": None})


def test_subclasses_of_arrays_and_read_only_inputs_are_taken():
    x = arguments("sort_columns")["x"]
    expected = _core.sort_columns(x, 1)
    x.flags.writeable = False
    assert_same_bits(_core.sort_columns(x, 1), expected)
    assert_same_bits(_core.sort_columns(x.view(np.memmap), 1), expected)


def test_kernels_take_and_return_denormals():
    tiny = np.full((3, 17), 1e-40, np.float32)
    assert_same_bits(_core.sort_columns(tiny, 1)[0], tiny)
    pair, settings = np.tile(tiny[0], 2), (np.array([0, 17]), None, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1)
    assert (_core.proximal_step(pair, pair, None, *settings)[0][17:] > 0).all()
    assert (_core.wasserstein(tiny, 2 * tiny, None, None, None, 1.0, 1) > 0).all()
