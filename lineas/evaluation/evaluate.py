"""evaluate(): what a steering achieves beside what it costs, of a language model or of a text-to-image pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..attaching.positions import Position
from ..network.pipelines import is_pipeline
from ..network.sites import Site
from ..steering import Steering
from .images import measure_pictures
from .measure import measure_language
from .report import Report


def evaluate(
    model: nn.Module | Any, steering: Steering | Mapping[str, Steering] | None = None, *,
    strengths: float | Sequence[float] = (0.5, 1.0), seeds: int | Sequence[int] = 0, scorers: Any = None,
    prompts: Sequence[Any] | None = None, batch_size: int | None = None, strict: bool = True, confidence: float = 0.95,
    progress: bool = True, tokenizer: Any = None, texts: Sequence[str] | None = None, src: Any = None, tgt: Any = None,
    sites: str | Sequence[str | Site] | None = None, tasks: str | Sequence[Any] | None = None,
    task_options: Mapping[str, Any] | None = None, count: int | None = None, new_tokens: int | None = None,
    temperature: float | None = None, top_p: float | None = None, position: Position | None = None,
    text_batch_size: int | None = None, max_length: int | None = None, call: Mapping[str, Any] | None = None,
    pictures: int | None = None,
) -> Report:  # fmt: skip
    """Measure what steering does and what it costs, beside the model without it.

    Parameters
    ----------
    model : a causal language model of transformers, or a text-to-image pipeline of diffusers
        Left as it was. Anything already on it is part of the base.
    steering : Steering, or dict of name -> Steering, optional
        What to measure; several are compared side by side. None: the base model only.
    strengths : float or list of float
        The base model, strength 0, is always measured and need not be among them.
    seeds : int or list of int
        Everything is drawn once with each.
    scorers : str or callable, or a list or dict of them, optional
        What continuations are scored by: "sentiment", "toxicity", "hf:NAME#LABEL", any function of a list of strings;
        the first two if not given. See `lineas.evaluation.scorer`. Or pictures: a scorer of a `Judge`, "clip:NAME",
        "dino:NAME", any function of pictures; none if not given. See `lineas.evaluation.picture_scorer`. () for none.
    prompts : list of str, or of chats
        What the model goes on from; 16 of ours if not given; () leaves out continuations, and with them scorers and
        diversity. Or captions, of which there must be some.
    batch_size : int, optional
        Continuations that are sampled together (256), with the seeds it decides which are drawn; or pictures (8).
    strict : as in `Steering.apply`
    confidence : float
        Of the intervals.
    progress : bool
    tokenizer : optional
        Of language models, as all up to `max_length`. Looked up from the model's own name if not given.
    texts : list of str, optional
        What perplexity and KL divergence are measured on; `lineas.samples.neutral_sentences()` if not given. () leaves
        both out.
    src, tgt : as in `lineas.fit`, optional
        Held-out inputs: how far apart they are, relative to the base model.
    sites : str or list, optional
        Where that is measured; by default at all sites of the steerings, the same ones for each.
    tasks : str or list, optional
        Tasks of lm-eval. `task_options` go to `lineas.evaluation.tasks`: include_path, limit, num_fewshot, ...
    count : int, optional
        Continuations of each prompt, for each seed: 16.
    new_tokens, temperature, top_p : as in `generate`, optional
        24, 1.0 and 0.9.
    position : as in `Steering.apply`, optional
        "all".
    text_batch_size : int, optional
        Texts, or held-out inputs, that pass through the model together: 16.
    max_length : int, optional
        Tokens of a text, or of a held-out input, beyond it are cut off.
    call : dict, optional
        Of pipelines, as is `pictures`: what they are called with beside the prompts, such as
        {"num_inference_steps": 4, "guidance_scale": 0.0}.
    pictures : int, optional
        Of the first so many prompts, and of the first seed, the pictures are kept, to look at: 8.

    Returns
    -------
    Report
        Of a language model, with these measures, as far as they were asked for:

        - "perplexity", of the texts, as `lineas.evaluation.perplexity` has it;
        - "kl", KL divergence of the next-token distributions to the base model's, a token of the texts, in nats;
        - one for each scorer, the mean score of the continuations;
        - "distinct_1", "distinct_2", "distinct_3", "self_bleu", of all continuations of a seed together;
        - "held_out", distance of src to tgt, relative to the base model; targets are the base model's responses;
        - "TASK_METRIC" for each metric of each task.

        Of a pipeline:

        - one for each scorer, the mean score of the pictures;
        - "pixel_change", mean absolute difference from the picture without steering, of values from 0 to 1. Picture k
          begins with the noise of `lineas.evaluation.generators(seed, n)[k]`, whatever the steering and the strength.

    Raises
    ------
    ImportError
        A scorer or a task needs a package; the message says what to install. Nothing has run then.
    TypeError, ValueError, LookupError
        As in `scorer`, `Steering.apply`, `responses` and `tasks`; strengths that are not finite; one of src and tgt;
        what only the other kind of model takes; pictures that are none, or not finite.

    Notes
    -----
    Each strength samples len(seeds) * len(prompts) * count continuations, or len(seeds) * len(prompts) pictures, which
    is most of the time. Texts pass once for each steering and strength.

    Examples
    --------
    >>> import lineas
    >>> def measured(model, steering, texts):
    ...     report = lineas.evaluate(model, steering, texts=texts, prompts=(), progress=False)
    ...     return report.change("perplexity", strength=1.0)
    """
    of_language = {
        "tokenizer": tokenizer, "texts": texts, "src": src, "tgt": tgt, "sites": sites, "tasks": tasks,
        "task_options": task_options, "count": count, "new_tokens": new_tokens, "temperature": temperature,
        "top_p": top_p, "position": position, "text_batch_size": text_batch_size, "max_length": max_length,
    }  # fmt: skip
    of_pictures = {"call": call, "pictures": pictures}
    is_pipe = is_pipeline(model)
    own, other = (of_pictures, of_language) if is_pipe else (of_language, of_pictures)
    if strange := [name for name, value in other.items() if value is not None]:
        kinds = ("a pipeline", "language models") if is_pipe else (f"a {type(model).__name__}", "pipelines")
        raise TypeError(f"{', '.join(strange)}: expected nothing for {kinds[0]}; only {kinds[1]} take it")
    chosen = {"scorers": scorers, "prompts": prompts, "batch_size": batch_size, **own}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    options |= {"strengths": strengths, "seeds": seeds, "strict": strict, "confidence": confidence}
    return (measure_pictures if is_pipe else measure_language)(model, steering, progress=progress, **options)
