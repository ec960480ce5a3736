"""Every option of `fit`, once: its name, default, type, what it is for, and what it must be.

The signature and docstring of `lineas.fit`, the checks and facts of `Options`, and the command line read this table;
tests/fitting/test_options.py holds them together. Nothing is imported here but the standard library, so that the
command line can read it without waiting for PyTorch.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes
    ----------
    name, default
    type : str
        As the docstring says it.
    help : str
        A sentence, for the docstring and the command line.
    check : str
        What it must be: "a name" among those that `options.NAMES` has for it, "names" (one of the poolings, or several,
        or None), "whole" (a number of at least 1, or None), "bytes" (how many, or None), "share" (a number of at
        least 0, or None), "price" (as a dial has it, or None), "flag"; empty where the part that uses it checks it.
    only : str
        "fit" for what only a fit through the model takes, "formula" for what only methods that compute maps from
        responses take.
    command : str or None
        What the command line says instead of `help`; None where it has no such option.
    """

    name: str
    default: Any
    type: str
    help: str
    check: str = ""
    only: str = ""
    command: str | None = ""

    @property
    def on_command_line(self) -> str:
        """What the command line says; empty where it has no such option."""
        return "" if self.command is None else self.command or self.help


OPTIONS = (
    Option("tokenizer", None, "tokenizer or str",
           "For strings and chats; looked up by the model's own name if not given.", command=None),
    Option("sites", None, "str or list", "Where to put maps: a regular expression or paths; see `lineas.find_sites`.",
           command="Where to put maps: a regular expression; see lineas sites."),
    Option("loss_sites", None, "str or list", "Where to compare: as `sites`, or output, what the network puts out.",
           only="fit", command="Where to compare, as --sites if not given; output: what the model puts out."),
    Option("units", None, "dict of site -> units", "Steer only these, as `Steering.support` has them; all if none.",
           command=None),
    Option("method", "lineas", "str or function", "How maps are found; a wrong name gets the list.", "a name"),
    Option("schedule", None, "str", "Of other methods than lineas: at_once or sequential.", "a name", "formula"),
    Option("within_range", False, "bool", "Of other methods than lineas: map only what the source's range holds.",
           "flag", "formula"),
    Option("recipe", "fast", "str", "fast, or published: the paper's schedule.", "a name", "fit"),
    Option("loss", "auto", "str or Loss", "auto, wasserstein, excess or significant.", "a name", "fit"),
    Option("loss_weights", "equal", "str", "What units count: equal, or standardised, each by 1 / its variance.",
           "a name", "fit"),
    Option("ridge", None, "float", "How much to hold back; from the data if not given.", "share", "fit"),
    Option("penalty", None, "Penalty", "What chooses units or sites, one of `lineas.penalties`, or your own.",
           only="fit", command=None),
    Option("optimizer", None, "str", "Published recipe: sgd, momentum, adam, adamw.", "a name", "fit"),
    Option("learning_rate", None, "float", "Published recipe only.", only="fit"),
    Option("steps", None, "int", "At most so many accepted steps.", "whole", "fit"),
    Option("max_evaluations", None, "int", "At most so many passes over the source set.", "whole", "fit",
           command="At most so many passes over the source texts."),
    Option("batch_size", None, "int", "Samples that pass through the model at once; all if not given.", "whole",
           command="Texts that pass through the model at once."),
    Option("max_length", None, "int", "Longest text in tokens; the rest is cut off.", "whole"),
    Option("compute_dtype", None, "str or dtype", "bfloat16 or float16 for matrix products."),
    Option("pooling", None, "str or several", "A unit's response: mean, max, min or last token, or several of them.",
           "names", command="A unit's response: mean, max, min or last token, or several of them: mean,max."),
    Option("position", "all", "str", "Which tokens are mapped.", "a name"),
    Option("budget", None, "str or float",
           "What strength 1 shall cost, such as '+5% perplexity', '0.05 nats' (`lineas.calibrate`).", "price",
           command="What strength 1 shall cost, such as '+5% perplexity' or '0.05 nats'; as fitted if not given."),
    Option("gate", None, "bool or str",
           "Act only on what is like the source: True, or the site that tells (`lineas.fit_gate`).",
           command="Act only on what is like the source: auto, or the site that tells."),
    Option("neutral", None, "as src", "What a gate shall leave alone; a language model writes some if not given.",
           command="A file of texts that a gate shall leave alone; the model writes some if not given."),
    Option("component", None, "str", "Of a pipeline: the network to steer; its denoiser if not given."),
    Option("call", None, "dict", "Of a pipeline: arguments of its call, such as num_inference_steps.",
           command="Of a pipeline: an argument of its call, guidance_scale=0 for instance; several times for more."),
    Option("at", None, "str or list", "Of a pipeline: the steps that count: first, all, or their numbers.",
           command="Of a pipeline: the steps that count: first, all, or numbers such as 0,2."),
    Option("memory", None, "str or int",
           "Most that samples and responses may take, such as 4 GB; the rest is on disk, in TMPDIR.", "bytes", "fit"),
    Option("graphs", True, "bool", "On a GPU: replay what passes have in common as CUDA graphs, where that works.",
           "flag", "fit", command=None),
    Option("seed", 0, "int", "Of the noise of a pipeline, and for models that draw random numbers."),
    Option("progress", True, "bool", "Show a bar: the objective, the support, and how long it may take.", "flag",
           command=None),
    Option("callbacks", (), "functions", "Called after every evaluation; True ends the fit (`lineas.callbacks`).",
           only="fit", command=None),
    Option("checkpoint_dir", None, "path", "Keep a checkpoint in this folder.", only="fit"),
    Option("resume_from", None, "Steering or path", "Start from these maps, or go on from this checkpoint.", only="fit",
           command="Go on from this checkpoint, or start from the maps in this steering's folder."),
    Option("distributed", False, "bool or group", "Fit together with other processes, each with its own samples.",
           command=None),
)  # fmt: skip
DEFAULT = SimpleNamespace(**{option.name: option.default for option in OPTIONS})
BY_NAME = {option.name: option for option in OPTIONS}


def described() -> str:
    """The options as lines of a docstring: name, type and default, and what they are for."""
    return "\n".join(f"    {o.name} : {o.type}, default {o.default!r}. {o.help}" for o in OPTIONS)
