"""Pictures scored by networks that see: a CLIP, a DINOv2, LPIPS."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .picture_scorers import PictureScorer
from .pictures import as_images
from .scorers import limit_of, missing


def clip(name: str, texts: Sequence[str] | None = None, *, better: str = "", device: Any = "cpu") -> PictureScorer:
    """A CLIP of transformers as a scorer: how well pictures fit their prompts, or which of some texts they fit.

    Parameters
    ----------
    name : str
        A hub name or a folder, such as "openai/clip-vit-base-patch32".
    texts : list of str, optional
        At least two, of which the first is the one whose probability is the score.
    better : {"higher", "lower", ""}
        Of the probability; more likeness to the prompt is better.
    device : str or torch.device

    Returns
    -------
    PictureScorer
        Called "clip", the cosine of the features of a picture and its prompt, from -1 to 1 (CLIPScore is 2.5 times
        this, at least 0). Or called by the first of the texts, its probability: the softmax over texts of the cosines
        times the CLIP's own scale, which is its zero-shot classification.

    Raises
    ------
    ImportError
        transformers is missing.
    ValueError
        Fewer than two texts, or the same twice.
    OSError
        No such CLIP, from transformers.
    """
    if texts is not None and (isinstance(texts, str) or len(set(texts)) < max(2, len(texts))):
        raise ValueError(f"texts: expected at least two different ones to choose from, got {texts!r}")
    model, processor = _loaded(f"clip:{name}", name, device)
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"expected a CLIP, got {type(model).__name__}: {name!r}")
    tokenizer = _tokenizer(name)
    most = limit_of(tokenizer, model.config.text_config)

    def of_texts(given: Sequence[str]) -> Tensor:
        inputs = tokenizer(list(given), padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
        return _features(model.get_text_features(**inputs))

    def of_pictures(pictures: NDArray) -> Tensor:
        return _features(model.get_image_features(**_prepared(processor, pictures, device)))

    @torch.no_grad()
    def fit(pictures: NDArray, prompts: list[str]) -> NDArray:
        return cosine_similarity(of_pictures(pictures), of_texts(prompts)).cpu().numpy()

    @torch.no_grad()
    def probability(pictures: NDArray) -> NDArray:
        cosines = cosine_similarity(of_pictures(pictures)[:, None], of_texts(texts or ())[None], dim=-1)
        return (model.logit_scale.double().exp() * cosines).softmax(1)[:, 0].cpu().numpy()

    if texts is None:
        return PictureScorer("clip", fit, "higher", takes=("pictures", "prompts"))
    return PictureScorer(texts[0], probability, better, takes=("pictures",))


def dino(name: str, *, device: Any = "cpu") -> PictureScorer:
    """Likeness to the picture without steering: the cosine of the two pictures' features.

    Parameters
    ----------
    name : str
        A hub name or a folder of a DINOv2, such as "facebook/dinov2-small", or of another vision transformer of
        transformers whose first token stands for the picture.
    device : str or torch.device

    Raises
    ------
    ImportError, OSError
        As for `clip`.
    """
    model, processor = _loaded(f"dino:{name}", name, device)
    if hasattr(model, "get_text_features"):
        raise ValueError(f"expected a network of pictures alone, got {type(model).__name__}: {name!r}")

    def of_pictures(pictures: NDArray) -> Tensor:
        return model(**_prepared(processor, pictures, device)).last_hidden_state[:, 0].double()

    @torch.no_grad()
    def likeness(pictures: NDArray, base: NDArray) -> NDArray:
        return cosine_similarity(of_pictures(pictures), of_pictures(base)).cpu().numpy()

    return PictureScorer("dino", likeness, "higher", takes=("pictures", "base"))


def lpips(net: str = "alex") -> PictureScorer:
    """LPIPS, perceptual distance from the picture without steering; of the package lpips, and a network that it names.

    ImportError where the package is missing.
    """
    try:
        import lpips as package
    except ImportError as error:
        raise ImportError("'lpips' needs lpips, which lineas does not bring: pip install lpips") from error
    measure = package.LPIPS(net=net, verbose=False).eval()

    @torch.no_grad()
    def distance(pictures: NDArray, base: NDArray) -> NDArray:
        first, second = (torch.from_numpy(one).movedim(-1, 1) for one in (pictures, base))
        return measure(first, second, normalize=True).flatten().numpy()  # normalize: from 0 to 1, as ours are

    return PictureScorer("lpips", distance, "lower", takes=("pictures", "base"))


def _loaded(what: str, name: str, device: Any) -> tuple[Any, Any]:
    try:
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise ImportError(missing(what, "transformers", "transformers")) from error
    model: Any = AutoModel.from_pretrained(name)
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(name)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _prepared(processor: Any, pictures: NDArray, device: Any) -> Any:
    return processor(images=as_images(pictures), return_tensors="pt").to(device)


def _features(output: Any) -> Tensor:
    """Older versions of transformers return them as they are."""
    return (output if isinstance(output, Tensor) else output.pooler_output).double()
