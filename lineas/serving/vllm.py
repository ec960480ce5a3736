"""vLLM: a worker extension, whose methods `collective_rpc` calls in every worker."""

from typing import Any

from torch import nn

from ..core.checks import number
from ..steering import Steering
from .engine_map import EngineMap, module_of, unsteered
from .places import by_module

__all__ = ["WorkerExtension"]


class WorkerExtension:
    """For vLLM's option `worker_extension_cls="lineas.serving.vllm.WorkerExtension"`: a steering, on at run time.

    Notes
    -----
    vLLM compiles models, and hooks come after that: expects `enforce_eager=True`. A strength holds for all requests
    from the next pass on; what vLLM cached of prefixes was computed with the one before (`reset_prefix_cache`).
    Source: `ParallelConfig.worker_extension_cls` and `WorkerBase.get_model` in vLLM's reference. Written against it
    and the sources of vLLM 0.33, tested with stand-ins; never run in vLLM.
    """

    def lineas_steer(self, steering: str, strength: float = 1.0) -> int:
        """Steer this worker's model, in the place of what lineas had on it; how many modules that takes here.

        Parameters
        ----------
        steering : str
            A folder that every worker can read, or a repository of the Hugging Face hub.
        strength : float

        Raises
        ------
        RuntimeError
            The model is compiled.
        ValueError
            A site is no module's output in vLLM, with the reason.
        LookupError
            The model has no such module.
        """
        worker: Any = self
        if not worker.model_config.enforce_eager:
            raise RuntimeError("expected vLLM with enforce_eager=True, got compiled code, in which no hook would run")
        model, maps = worker.get_model(), Steering.from_pretrained(steering)
        found: dict[str, tuple[nn.Module, EngineMap]] = {}
        for name, places in by_module(maps.sites).items():
            hook = EngineMap(maps, places, number(strength, "strength"))
            if (module := module_of(model, name)) is not None:
                found[name] = module, hook
        self.lineas_stop()
        self.lineas_handles = {name: module.register_forward_hook(hook) for name, (module, hook) in found.items()}
        return len(found)

    def lineas_stop(self) -> None:
        """The model as it was."""
        for handle in getattr(self, "lineas_handles", {}).values():
            handle.remove()
        self.lineas_handles = {}

    def lineas_silent(self) -> list[str]:
        """The modules that have not run with their maps since this was asked the last time: none, after a request."""
        worker: Any = self
        return unsteered(worker.get_model(), list(getattr(self, "lineas_handles", {})))
