"""Zero-shot and few-shot tasks of lm-eval, the Language Model Evaluation Harness, on a steered model."""

import copy
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn

from ..attaching.positions import Position
from ..network.links import unwrapped
from ..network.state import device_of, frozen, seeded
from ..network.texts import find_tokenizer

if TYPE_CHECKING:
    from ..steering import Steering


class TaskResult(NamedTuple):
    """One metric of one task."""

    value: float
    error: float | None  # standard error over the task's items, where lm-eval knows one
    better: str  # "higher", "lower", or "" where lm-eval does not say
    items: int


def tasks(
    model: nn.Module, tokenizer: Any, tasks: str | Sequence[Any], *, steering: "Steering | None" = None,
    strength: float = 1.0, position: Position = "all", strict: bool = True,
    include_path: str | os.PathLike | None = None, num_fewshot: int | None = None, limit: int | float | None = None,
    batch_size: int = 8, seed: int = 0, task_manager: Any = None, **options: Any,
) -> dict[str, TaskResult]:  # fmt: skip
    """Run tasks of lm-eval with a steering on the model.

    Parameters
    ----------
    model : a causal language model of transformers
        Left as it was.
    tokenizer : of transformers; None looks it up from the model's own name
    tasks : str or list
        What `lm_eval.simple_evaluate` takes: names of tasks or groups, dicts, task objects.
    steering, strength, position, strict : as in `Steering.apply`; no steering is the model as it is
    include_path : path, optional
        A folder with task files (YAML) of your own.
    num_fewshot : int, optional
        Examples before each item; what the task says if not given, else none.
    limit : int or float, optional
        Only so many items of each task, or below 1 such a part: for a first look.
    batch_size : int
    seed : int
        Of few-shot examples and whatever else is drawn; the global random states are left as they were.
    task_manager : lm_eval.tasks.TaskManager, optional
        One made before: where a task is not in `include_path`, lm-eval's own thousands of files are read, which takes
        half a minute.
    **options
        Go to `lm_eval.simple_evaluate`.

    Returns
    -------
    dict of str -> TaskResult
        By "task_metric", "arc_easy_acc" for instance, with "_filter" behind it where it is not "none".

    Raises
    ------
    ImportError
        lm-eval is missing: pip install 'lineas[tasks]'.
    LookupError
        No such task.
    """
    manager = task_manager or manager_of(tasks, include_path)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = unwrapped(model)
    tokenizer = copy.deepcopy(find_tokenizer(model, "tasks", tokenizer))  # it gets a pad
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    on = nullcontext() if steering is None else steering.apply(model, strength, position=position, strict=strict)
    with _left_alone(), seeded(seed, device_of(model)), frozen(model), on:
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size), tasks=names,
            num_fewshot=num_fewshot, limit=limit, task_manager=manager, random_seed=seed, numpy_random_seed=seed,
            torch_random_seed=seed, fewshot_random_seed=seed, **{"log_samples": False, **options},
        )  # fmt: skip
    return _results(found)


def manager_of(tasks: str | Sequence[Any], include_path: str | os.PathLike | None = None) -> Any:
    """What finds these tasks: a TaskManager of lm-eval that has read its own files only if that is necessary.

    ImportError where lm-eval is missing, LookupError for tasks that there are not.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError("tasks need lm-eval, which lineas does not bring: pip install 'lineas[tasks]'") from error
    names = [name for name in ([tasks] if isinstance(tasks, str) else tasks) if isinstance(name, str)]
    path = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=path)
    if unknown := set(names) - set(manager.all_tasks):
        raise LookupError(f"tasks: lm-eval knows no {', '.join(map(repr, sorted(unknown)))}; is include_path right?")
    return manager


def _results(found: Any) -> dict[str, TaskResult]:
    results = {}
    for task, metrics in found["results"].items():
        higher = found.get("higher_is_better", {}).get(task, {})
        items = found.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            better = {True: "higher", False: "lower"}.get(higher.get(metric), "")
            name = f"{task}_{metric}" + ("" if kind == "none" else f"_{kind}")
            known = isinstance(error, float) and np.isfinite(error)
            results[name] = TaskResult(float(value), float(error) if known else None, better, items)
    return results


@contextmanager
def _left_alone() -> Iterator[None]:
    """Put back what lm-eval sets for the whole process: random states; and keep its advice on arguments quiet."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 -- lm-eval seeds the old generator
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
