"""What texts are scored by: ready-made scorers, classifiers of transformers, functions of one's own."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

BETTER = ("higher", "lower", "")
PREFIX = "hf:"
Kind = TypeVar("Kind", bound=Any)  # of scorer: of texts, or of pictures


@dataclass(frozen=True)
class Scorer:
    """A function that gives each text a number.

    Parameters
    ----------
    name : str
        What the figure is called in a report.
    function : callable
        list of n str -> n finite floats.
    better : {"higher", "lower", ""}
        Which way is better; "" where neither is.
    """

    name: str
    function: Callable[[list[str]], ArrayLike]
    better: str = "higher"

    def __post_init__(self) -> None:
        check_better(self.better)

    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """(n,) for n texts. ValueError where the function returns anything else, or what is not finite."""
        return checked(self.name, self.function(list(texts)), len(texts), "text")


def checked(name: str, given: ArrayLike, count: int, what: str) -> NDArray[np.float64]:
    """(count,): what a scorer returned, for so many of these. ValueError where it is anything else, or not finite."""
    scores = np.asarray(given, np.float64)
    if scores.shape != (count,) or not np.isfinite(scores).all():
        got = "some that are not finite" if scores.shape == (count,) else f"shape {scores.shape}"
        raise ValueError(f"scorer {name!r}: expected {count} finite numbers, one for each {what}; got {got}")
    return scores


def check_better(better: str) -> None:
    if better not in BETTER:
        raise ValueError(f"better: expected one of {', '.join(map(repr, BETTER))}; got {better!r}")


def scorer(what: "str | Scorer | Callable[[list[str]], ArrayLike]") -> Scorer:
    """A scorer by its name, or of a function.

    Parameters
    ----------
    what : str or callable
        - "sentiment": VADER's compound, from -1 to 1, higher is better. Needs vaderSentiment.
        - "toxicity": the probability of profanity, lower is better. Needs alt-profanity-check, a linear classifier of
          words trained on comments; it knows swearing better than malice.
        - "hf:NAME" or "hf:NAME#LABEL": the probability of a label in a classifier of transformers (`classifier`).
        - any function of a list of strings that returns as many numbers; higher is taken to be better. A `Scorer`, or
          `Scorer(name, function, better)`, says more.

    Raises
    ------
    ImportError
        A package is missing; the message says what to install.
    TypeError, ValueError
        Nothing that can score.

    Examples
    --------
    >>> from lineas import evaluation
    >>> evaluation.scorer(lambda texts: [len(text) for text in texts])(["one", "three"])
    array([3., 5.])
    """
    if isinstance(what, Scorer):
        return what
    if callable(what):
        name = getattr(what, "__name__", type(what).__name__)
        return Scorer("effect" if name == "<lambda>" else name, what)
    if not isinstance(what, str):
        raise TypeError(f"scorer: expected a name or a function, got {type(what).__name__}")
    if what in READY:
        return READY[what]()
    if what.startswith(PREFIX):
        name, _, label = what.removeprefix(PREFIX).partition("#")
        return classifier(name, label or None)
    names = ", ".join(map(repr, READY))
    raise ValueError(f"scorer: expected {names}, '{PREFIX}' and a classifier's name, or a function; got {what!r}")


def scorers_of(given: Any) -> list[Scorer]:
    """One scorer, several, or a dict by name, as a list; names tell them apart."""
    return several_of(given, scorer)


def several_of(given: Any, scorer: Callable[[Any], Kind]) -> list[Kind]:
    if isinstance(given, Mapping):
        return [replace(scorer(what), name=name) for name, what in given.items()]
    several = [given] if isinstance(given, str) or callable(given) else given
    if not isinstance(several, Iterable):
        raise TypeError(f"scorers: expected a scorer, a list or a dict of them, got {type(given).__name__}")
    found = [scorer(what) for what in several]
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"scorers: expected different names, got {', '.join(sorted(twice))} more than once; use a dict"
        )
    return found


def missing(name: str, package: str, extra: str = "evaluation") -> str:
    return f"{name!r} needs {package}, which lineas does not bring: pip install 'lineas[{extra}]'"


def _sentiment() -> Scorer:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError(missing("sentiment", "vaderSentiment")) from error
    vader = SentimentIntensityAnalyzer()
    return Scorer("sentiment", lambda texts: [vader.polarity_scores(text)["compound"] for text in texts])


def _toxicity() -> Scorer:
    try:
        with warnings.catch_warnings():  # its pickled classifier may be of another version of scikit-learn
            warnings.simplefilter("ignore")
            from profanity_check import predict_prob
    except ImportError as error:
        raise ImportError(missing("toxicity", "alt-profanity-check")) from error
    return Scorer("toxicity", predict_prob, "lower")


READY = {"sentiment": _sentiment, "toxicity": _toxicity}


def classifier(
    name: str, label: str | int | None = None, *, better: str = "", batch_size: int = 32, device: Any = "cpu"
) -> Scorer:
    """A text classifier of transformers as a scorer: the probability of one of its labels.

    Parameters
    ----------
    name : str
        A hub name or a folder.
    label : str or int, optional
        A label's name or its number. If not given, the second of two, or the only one.
    better : {"higher", "lower", ""}
    batch_size : int
        Texts that pass through the classifier together.
    device : str or torch.device

    Returns
    -------
    Scorer
        Called by the label where that has a name of its own, else "effect". Probabilities are of a softmax over the
        labels; where they do not exclude each other, or there is only one, of a sigmoid.

    Raises
    ------
    ImportError
        transformers is missing.
    LookupError
        No such label; its labels are named.
    OSError
        No such classifier, from transformers.
    """
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ImportError(missing(PREFIX + name, "transformers", "transformers")) from error
    tokenizer = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForSequenceClassification.from_pretrained(name).to(device).eval()
    labels = [str(model.config.id2label.get(k, k)) for k in range(model.config.num_labels)]
    chosen = _label(name, label, labels)
    exclusive = len(labels) > 1 and model.config.problem_type != "multi_label_classification"
    pads = tokenizer.pad_token_id is not None and model.config.pad_token_id is not None
    options = {"truncation": True, "max_length": limit_of(tokenizer, model.config), "return_tensors": "pt"}

    def probabilities(texts: list[str]) -> ArrayLike:
        found, size = [], batch_size if pads else 1
        with torch.no_grad():
            for start in range(0, len(texts), size):
                inputs = tokenizer(texts[start : start + size], padding=pads, **options).to(device)
                logits = model(**inputs).logits.double()
                found.append((logits.softmax(-1) if exclusive else logits.sigmoid())[:, chosen].cpu())
        return torch.cat(found).numpy() if found else []

    given = labels[chosen]
    return Scorer("effect" if given.startswith("LABEL_") else given, probabilities, better)


def _label(name: str, label: str | int | None, labels: list[str]) -> int:
    if label is None and len(labels) <= 2:
        return len(labels) - 1
    if label in labels:
        return labels.index(str(label))
    number = int(label) if isinstance(label, int) or (label or "").isdecimal() else -1  # type: ignore[arg-type]
    if not 0 <= number < len(labels):
        raise LookupError(f"label of {name!r}: expected one of {', '.join(labels)}, or its number; got {label!r}")
    return number


def limit_of(tokenizer: Any, config: Any) -> int | None:
    """Tokens that a text may have."""
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min((n for n in limits if isinstance(n, int) and n < 10**9), default=None)
