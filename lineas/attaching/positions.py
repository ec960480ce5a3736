"""Which tokens of a forward pass are steered: their absolute positions, with a cache of keys and values or without.

A token's position is the number of real tokens before it in its row. What counts as the prompt is written down in
`docs/guide.md`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..maps.gate import Gate
from ..network.generation import OfThread, Watch, is_encoder_decoder, real_order, watch
from ..network.links import arguments_of
from .caches import Reading, columns_in
from .rows import Spread

__all__ = ["POSITIONS", "Pass", "Tokens", "check_position"]

Position = str | Callable[[Tensor], Tensor]
POSITIONS = ("all", "last", "prompt", "generated")
ONLY_ALL = 'there, only position="all" without count=True is defined'
EXPERTS = r"(?i)(?<!shared_)expert|moe"
UNCLEAR = ("cu_seq_lens_q", "cu_seqlens_q", "block_table", "cache_params")  # texts packed in one row; recurrent states


def check_position(position: Any) -> None:
    expected = f"expected one of {', '.join(map(repr, POSITIONS))}, or a function of absolute positions"
    if not callable(position) and not isinstance(position, str):
        raise TypeError(f"position: {expected}, got {type(position).__name__}")
    if isinstance(position, str) and position not in POSITIONS:
        raise ValueError(f"position: {expected}, got {position!r}")


class Pass:
    """The tokens of a forward pass: which are steered (all, none, or a mask (rows, tokens)), and which are real."""

    def __init__(self, inputs: Tensor, steer: bool | Tensor, real: Tensor | None):
        self.inputs, self.steer, self.real = inputs, steer, real
        self._by_device: dict[torch.device, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        """(rows, tokens), of a tensor, as compilers take numbers for constants."""
        return self.inputs.shape[:2]

    def mask(self, device: torch.device) -> Tensor:
        """(rows, tokens, 1) bool, where `steer` is a mask."""
        if device not in self._by_device:
            self._by_device[device] = torch.as_tensor(self.steer, device=device).unsqueeze(-1)
        return self._by_device[device]

    def counts(self, active: bool | Tensor) -> tuple[int | Tensor, int | Tensor]:
        """How many tokens are real, and how many of these are steered in the rows (rows,) that are steered at all."""
        seen = self.shape.numel() if self.real is None else self.real.sum()
        if self.steer is False or active is False:
            return seen, 0
        steered = self.real  # None: all
        if isinstance(self.steer, Tensor):
            steered = self.steer if steered is None else steered & self.steer
        if isinstance(active, Tensor):
            rows = active.unsqueeze(1).to(active.device if steered is None else steered.device)
            steered = rows.expand(-1, self.shape[1]) if steered is None else steered & rows
        return seen, seen if steered is None else steered.sum()


def check_lengths(lengths: int | Sequence[int] | Tensor) -> Tensor:
    """Prompt lengths as the user says them: one for all rows (1,), or one a row (batch,)."""
    given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    if given.is_floating_point() or given.dtype == torch.bool or given.ndim > 1 or not given.numel():
        raise ValueError(f"prompt: expected a number of tokens, or one for each row, got {lengths!r:.60}")
    if (given < 0).any():
        raise ValueError(f"prompt: expected lengths of at least 0, got {int(given.min())}")
    return given.reshape(-1).long()


class Ongoing(OfThread):
    def __init__(self):
        self.passes: list[Pass | None] = []  # that of the innermost model last
        self.readings: list[Reading] = []  # of gates in them, where there are any
        self.last_reading: Reading | None = None  # of the pass that ended last
        self.lengths: Tensor | None = None  # of prompts, where the user says so


class Tokens:
    """What a handle knows about the tokens that pass through the model, and how many rows `generate` was given."""

    factor, tells_rows = 1.0, False  # what only passes of a pipeline have

    def __init__(self, position: Position, counting: bool, gates: Iterable[Gate] = ()):
        self.position, self.counting, self.gates = position, counting, list(gates)
        self.ongoing = Ongoing()
        self.said: list[Tensor] = []  # lengths of prompts, in whichever thread
        self.batch: tuple[str, int] | None = None  # in which argument rows are told apart, and how many
        self.watches: list[Watch] = []
        self.hosts: list[nn.Module] = []
        self._hooks: list[Any] = []

    @property
    def is_needed(self) -> bool:
        """Whether passes must be watched, whatever the strengths are."""
        return self.tells_tokens or bool(self.gates)

    @property
    def tells_tokens(self) -> bool:
        """Whether sites must know their tokens."""
        return self.position != "all" or self.counting

    # -- on and off --

    def watch_passes(self, model: nn.Module) -> None:
        """Know the tokens of every forward pass, and what `generate` is given: the model's, and what it wraps."""
        self.watches = [watch(module, self) for module in model.modules() if hasattr(type(module), "generate")]
        watches = {watch.model: watch for watch in self.watches}
        for module in dict.fromkeys([model, *watches]):
            known: Any = module
            if is_encoder_decoder(module) and hasattr(module, "get_encoder"):
                self._host(module, TokenHook(self, watches.get(module), "decoder_"))
                self._host(known.get_decoder(), TokenHook(self, watches.get(module)))
                self._host(known.get_encoder(), TokenHook(self, None, is_encoder=True))  # `generate` calls it by itself
            else:
                self._host(module, TokenHook(self, watches.get(module)))

    def _host(self, module: nn.Module, hook: "TokenHook") -> None:
        hook.names, hook.outermost = list(arguments_of(module)), not self.hosts
        self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(EndOfPass(self), always_call=True))
        self.hosts.append(module)

    def leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for known in self.watches:
            known.leave(self)
        self._hooks, self.watches = [], []

    # -- what is going on --

    @property
    def current(self) -> Pass | None:
        """This thread's innermost pass; None where there is none, or where its tokens cannot be told."""
        passes = self.ongoing.passes
        return passes[-1] if passes else None

    @property
    def reading(self) -> Reading | None:
        """What gates read in this thread's innermost pass; None outside of one."""
        readings = self.ongoing.readings
        return readings[-1] if readings else None

    def begins(self, rows: int) -> None:
        """`generate` was called with so many rows."""
        said_by_row = [self.batch] if self.batch is not None else []
        lengths = self.ongoing.lengths
        if lengths is not None and len(lengths) > 1:
            said_by_row.append(("prompt", len(lengths)))
        for name, count in said_by_row:
            if count != rows:
                raise ValueError(f"{name}: expected one for each of {rows} rows, got {count}")

    def times(self, rows: int, given: int, name: str) -> int:
        """How many of a pass's rows come of each row that the user spoke of: beams, or several returned sequences."""
        if rows == given:
            return 1
        generating = any(watch.prompt is not None for watch in self.watches)
        if not generating or rows % given:
            raise ValueError(f"{name}: expected one for each of {rows} rows, got {given}")
        return rows // given

    def times_at(self, site: str, h: Tensor, given: int, name: str) -> int:
        """`times` of a site's output; ValueError where its rows may be others than those of the pass."""
        now, expected = self.current, ""
        if now is not None and (h.ndim == 2 or len(h) != now.shape[0]):
            expected = f"activations of the {now.shape[0]} rows"
        if not self.ongoing.passes and h.ndim == 2:
            expected = "to run inside a call"
        if expected:
            raise ValueError(
                f"site {site!r}: expected {expected} of the steered model, got {tuple(h.shape)}, perhaps of some "
                f"tokens only; there, {name} is one for all rows"
            )
        return self.times(len(h), given, name)

    def spread_at(self, site: str, h: Tensor, given: int, name: str) -> Spread:
        """How the rows that the user spoke of lie in a site's output."""
        return Spread(self.times_at(site, h, given, name))

    @contextmanager
    def prompt(self, lengths: int | Sequence[int] | Tensor) -> Iterator[None]:
        before, self.ongoing.lengths = self.ongoing.lengths, check_lengths(lengths)
        self.said.append(self.ongoing.lengths)
        try:
            yield
        finally:
            self.said.pop()
            self.ongoing.lengths = before

    def folded(self, site: str, module: nn.Module, h: Tensor) -> torch.Size | None:
        """(rows, tokens) of the pass, where a site's output (rows * tokens, channels) has them folded, as OPT's have.

        Experts may get as many tokens, and in another order.
        """
        now = self.current
        among = re.search(EXPERTS, f"{site} {type(module).__name__}")
        return None if now is None or among or h.ndim != 2 or len(h) != now.shape.numel() else now.shape

    def at(self, site: str, h: Tensor, dim: int, only: str = ONLY_ALL) -> Pass:
        """The pass that a site's output belongs to; ValueError where its tokens are not those of the pass."""
        if h.ndim != 3 or dim != -1:
            raise ValueError(
                f"site {site!r}: expected activations (batch, tokens, channels), got {tuple(h.shape)}; {only}"
            )
        now = self.current
        if now is None:
            raise ValueError(
                f"site {site!r}: expected to run inside a call of the steered model with input_ids or inputs_embeds, "
                f"got a call without them, or of one of its modules; {only}"
            )
        if h.shape[:2] != now.shape:
            raise ValueError(
                f"site {site!r}: expected the {now.shape[0]} x {now.shape[1]} (batch x tokens) of the forward pass, "
                f"got {tuple(h.shape)}; {only}"
            )
        return now


class TokenHook:
    """A pre-hook that sees which tokens a module is given. `watch` is of the `generate` that may be calling."""

    def __init__(self, tokens: Tokens, watch: Watch | None, prefix: str = "", is_encoder: bool = False):
        self.tokens, self.watch, self.prefix, self.is_encoder = tokens, watch, prefix, is_encoder
        self.names: list[str] = []
        self.outermost = False

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.names, args, strict=False))
        given.update(kwargs)
        if getattr(module, "_is_replica", False) and self.tokens.said:
            raise RuntimeError(
                "prompt: expected a pass in the thread that gave the lengths, got a replica's of DataParallel; "
                "steer the model that it wraps"
            )
        if self.outermost:  # an error may have left something
            self.tokens.ongoing.passes.clear()
            self.tokens.ongoing.readings.clear()
        now = self._pass(given)
        if self.tokens.gates:
            running = [gate.key for gate in self.tokens.gates if gate.pooling == "running" and now is not None]
            rows = 0 if now is None else now.shape[0]
            self.tokens.ongoing.readings.append(Reading(given.get("past_key_values"), running, rows))
        self.tokens.ongoing.passes.append(now)

    def _pass(self, given: dict[str, Any]) -> Pass | None:
        inputs = _inputs(given, self.prefix)
        if inputs is None:
            return None
        if not self.tokens.is_needed:
            return Pass(inputs, True, None)
        for key in UNCLEAR:
            if given.get(key) is not None:
                raise ValueError(f"expected one text a row, and a cache of keys and values, got {key}; {ONLY_ALL}")
        mask, cache = given.get(f"{self.prefix}attention_mask"), given.get("past_key_values")
        past = columns_in(cache)
        prompt = self.watch.prompt if self.watch is not None else None
        if prompt is None:
            order = None if mask is None else real_order(_checked(mask, inputs, past).to(inputs.device))
            return self._outside(inputs, past, order)
        if prompt.starts(past, cache is not None):
            if not isinstance(mask, Tensor) or mask.ndim != 2:
                mask = torch.ones(inputs.shape[:2], device=inputs.device)
            prompt.order = real_order(mask)
        return self._inside(inputs, past, prompt.order_of(len(inputs), inputs.device))

    def _inside(self, inputs: Tensor, past: int | Tensor, order: Tensor) -> Pass:
        """A pass of `generate`: `order` is of its prompt's columns, and what comes after them is real."""
        if isinstance(past, int) and past >= order.shape[1] and self._needs_no_numbers():
            return Pass(inputs, self.tokens.position != "prompt", None)
        numbers = _numbers(order, _columns(inputs, past))
        return Pass(inputs, self._steer(numbers, (order >= 0).sum(1, keepdim=True)), numbers >= 0)

    def _outside(self, inputs: Tensor, past: int | Tensor, order: Tensor | None) -> Pass:
        """Any other pass: it is a prompt, or comes after one where there is something in the cache."""
        tells_padding = self.tokens.counting or self.tokens.gates
        only_named = self._needs_no_numbers() and (order is None or not tells_padding)
        if isinstance(past, int) and past and only_named:
            return Pass(inputs, self.tokens.position != "prompt", None)
        columns = _columns(inputs, past)
        numbers = columns.expand(len(inputs), -1) if order is None else _numbers(order, columns)
        is_prompt = int(past == 0) if isinstance(past, int) else (past == 0).to(inputs.device)
        lengths = (numbers >= 0).sum(1, keepdim=True) * is_prompt
        return Pass(inputs, self._steer(numbers, lengths), None if order is None else numbers >= 0)

    def _needs_no_numbers(self) -> bool:
        """Whether all that comes after a prompt is alike."""
        return isinstance(self.tokens.position, str) and self._lengths() is None

    def _lengths(self) -> Tensor | None:
        """Of prompts, as the user says them; an encoder's tokens are prompt all the same."""
        return None if self.is_encoder else self.tokens.ongoing.lengths

    def _steer(self, numbers: Tensor, lengths: Tensor) -> bool | Tensor:
        """Which tokens are steered, by their numbers (rows, tokens) and the lengths (rows, 1) of the prompts."""
        position, said = self.tokens.position, self._lengths()
        if said is not None:
            lengths = said.to(numbers.device)
            if len(lengths) > 1:
                lengths = lengths.repeat_interleave(self.tokens.times(len(numbers), len(lengths), "prompt"))
            lengths = lengths.unsqueeze(1)
        if position == "all":
            return True
        if position == "prompt":
            steer = numbers < lengths
        elif position == "generated":
            steer = numbers >= lengths
        elif position == "last":
            steer = numbers >= lengths - 1
        else:
            steer = _called(position, numbers)
        return steer & (numbers >= 0)


class EndOfPass:
    """A hook after a module whose tokens were looked at."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.tokens.ongoing.passes:
            self.tokens.ongoing.passes.pop()
        if self.tokens.ongoing.readings:
            reading = self.tokens.ongoing.readings.pop()
            reading.end(output)
            if reading.openness:  # and not of what wraps the model, where nothing is read
                self.tokens.ongoing.last_reading = reading


def _called(position: Any, numbers: Tensor) -> Tensor:
    steer = position(numbers)
    if not isinstance(steer, Tensor) or steer.dtype != torch.bool or steer.shape != numbers.shape:
        got = f"{tuple(steer.shape)} {steer.dtype}" if isinstance(steer, Tensor) else type(steer).__name__
        raise TypeError(f"position: expected the function to return bool {tuple(numbers.shape)}, got {got}")
    return steer.to(numbers.device)


def _inputs(given: dict[str, Any], prefix: str) -> Tensor | None:
    """What has the pass's rows and tokens in its first two dimensions: ids, embeddings, or a plain module's input."""
    for key in (f"{prefix}input_ids", f"{prefix}inputs_embeds"):
        if isinstance(given.get(key), Tensor):
            return given[key]
    first = next((value for value in given.values() if isinstance(value, Tensor)), None)
    plain = first is not None and not prefix and first.ndim == (3 if first.is_floating_point() else 2)
    return first if plain else None


def _checked(mask: Any, inputs: Tensor, past: int | Tensor) -> Tensor:
    needed = inputs.shape[1] + (past if isinstance(past, int) else 0)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != inputs.shape[0] or mask.shape[1] < needed:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: expected ({inputs.shape[0]}, {needed}), got {got}; {ONLY_ALL}")
    return mask


def _columns(inputs: Tensor, past: int | Tensor) -> Tensor:
    """(tokens,): the pass's columns, counted from the first that the cache has."""
    past = past if isinstance(past, int) else past.to(inputs.device)
    return torch.arange(inputs.shape[1], device=inputs.device) + past


def _numbers(order: Tensor, columns: Tensor) -> Tensor:
    """`order` (rows, width) at columns (tokens,); columns behind it go on counting."""
    width = order.shape[1]
    inside = order.index_select(1, columns.clamp(max=width - 1))
    return torch.where(columns < width, inside, (order >= 0).sum(1, keepdim=True) + columns - width)
