"""While a model generates: which columns of its rows are the prompt, and which of them are padding."""

import threading
from collections.abc import Mapping
from functools import update_wrapper
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Prompt", "Watch", "is_encoder_decoder", "real_order", "watch"]


class Listener(Protocol):
    def begins(self, rows: int) -> None: ...


class OfThread(threading.local):
    """What goes on in one thread: several may call a steered model at the same time. A copy knows of nothing yet."""

    def __reduce__(self):
        return type(self), ()


class Prompt:
    """What one call of `generate` was given: so many rows, and where each row's real tokens are.

    What the decoder of an encoder-decoder model starts from is known in its first pass only.
    """

    def __init__(self, rows: int, mask: Tensor | None):
        self.rows = rows
        self.order = None if mask is None else real_order(mask)
        self._is_seen_late = mask is None

    def starts(self, past: int | Tensor, caches: bool) -> bool:
        """Whether a pass after so many columns shows a prompt; some models generate several times in one call."""
        return self.order is None or (self._is_seen_late and caches and isinstance(past, int) and not past)

    def order_of(self, rows: int, device: torch.device) -> Tensor:
        """`real_order` for as many rows as the model has now: beams and samples of a row lie side by side."""
        if self.order is None:
            raise RuntimeError("the prompt is not known before the first pass")
        if rows % len(self.order):
            raise ValueError(f"generate: expected a multiple of its {len(self.order)} rows, got {rows}")
        if self.order.device != device or len(self.order) != rows:
            self.order = self.order.to(device).repeat_interleave(rows // len(self.order), 0)
        return self.order


def real_order(mask: Tensor) -> Tensor:
    """(batch, columns), not zero where a token is real -> its number among its row's real tokens, -1 for padding."""
    real = mask != 0
    return torch.where(real, real.cumsum(1) - 1, -1)


class Running(OfThread):
    prompt: Prompt | None = None


class Watch:
    """Stands in for a model's `generate` as long as anybody listens; `prompt` is what this thread's call was given."""

    def __init__(self, model: nn.Module):
        self.model, self.before = model, vars(model).get("generate")
        self.listeners: list[Listener] = []
        self.running = Running()
        update_wrapper(self, self._original())

    @property
    def prompt(self) -> Prompt | None:
        return self.running.prompt

    def __getstate__(self) -> dict[str, Any]:  # without what `generate` is annotated with, which no file can hold
        return {name: vars(self)[name] for name in ("model", "before", "listeners", "running")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        update_wrapper(self, self._original())

    def _original(self) -> Any:
        return self.before or MethodType(type(self.model).generate, self.model)  # type: ignore[attr-defined]

    def __call__(self, *args, **kwargs):
        if not self.listeners:  # another wrapper still holds us
            return self._original()(*args, **kwargs)
        outer = self.running.prompt
        prompt, kwargs = _prompt(self.model, args, kwargs)
        for listener in self.listeners:
            listener.begins(prompt.rows)
        self.running.prompt = prompt
        try:
            return self._original()(*args, **kwargs)
        finally:
            self.running.prompt = outer

    def leave(self, listener: Listener) -> None:
        """The last to leave puts the model's own `generate` back."""
        self.listeners.remove(listener)
        if not self.listeners and vars(self.model).get("generate") is self:
            if self.before is None:
                del self.model.generate
            else:
                self.model.generate = self.before


def watch(model: nn.Module, listener: Listener) -> Watch:
    """Listen to a model's `generate`; whoever else listens shares the one watch."""
    found = vars(model).get("generate")
    if not isinstance(found, Watch):
        found = Watch(model)
        model.generate = found  # type: ignore[assignment]
    found.listeners.append(listener)
    return found


def _prompt(model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """What `generate` was given; and its arguments, with the mask that it would infer where it was given none."""
    given = dict(zip(("inputs", "generation_config"), args, strict=False)) | kwargs
    if setting(model, given, "guidance_scale") not in (None, 1):
        raise ValueError(
            "generate: expected no guidance_scale, got one; it runs other prompts beside the given ones, so positions "
            'other than "all", and strengths by row, are not defined'
        )
    if is_encoder_decoder(model):
        if given.get("assistant_model") is not None or setting(model, given, "prompt_lookup_num_tokens"):
            raise ValueError(
                'generate: expected position="all" for assisted generation with an encoder-decoder model, got another, '
                "or strengths by row"
            )
        return Prompt(_rows(given), None), kwargs  # the first pass shows what the decoder starts from
    tokens = next((x for key in ("inputs_embeds", "input_ids", "inputs") if (x := given.get(key)) is not None), None)
    mask = given.get("attention_mask")
    if tokens is None:  # from the one token that says that a text begins
        return Prompt(_rows(given), torch.ones(_rows(given), 1, device="cpu")), kwargs
    if mask is None and (inferred := _inferred_mask(model, given, tokens)) is not None:
        mask, kwargs = inferred, {**kwargs, "attention_mask": inferred}
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if mask.ndim != 2:
        raise ValueError(f"generate: expected attention_mask (batch, tokens), got {tuple(mask.shape)}")
    return Prompt(len(tokens), mask), kwargs


def _rows(given: Mapping[str, Any]) -> int:
    return next((len(value) for value in given.values() if isinstance(value, Tensor) and value.ndim > 1), 1)


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def setting(model: nn.Module, given: Mapping[str, Any], name: str) -> Any:
    """An option of `generate`: of the call, else of the configuration it was given, else of the model's own."""
    if name in given:
        return given[name]
    configs = (given.get("generation_config"), getattr(model, "generation_config", None))
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


def _inferred_mask(model: nn.Module, given: Mapping[str, Any], ids: Tensor) -> Tensor | None:
    """What transformers takes as padding where it is given no mask: pad tokens, unless they end texts too."""
    pad, end = setting(model, given, "pad_token_id"), setting(model, given, "eos_token_id")
    ends = end if isinstance(end, (list, tuple)) else [end]
    if pad is None or pad in ends or ids.ndim != 2 or ids.is_floating_point() or not (ids == pad).any():
        return None
    return (ids != pad).long()
