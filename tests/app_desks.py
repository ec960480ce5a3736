"""What the tests of the app share: a desk with a small model and two steerings, and what each gives alone."""

from conftest import random_maps, small_model, small_tokenizer

import lineas
from lineas import evaluation
from lineas.maps.dial import Cost
from lineas_app.desk import Desk
from lineas_app.makers import Sampling, Writer

PROMPTS = ("The movie was", "His film <b>& so on")
SAMPLING = Sampling(8, 1.0, 3)


def dial(price="perplexity"):
    costs = tuple(Cost(value, 0.9 * value, 1.1 * value) for value in (0.02, 0.05, 0.27))
    return lineas.Dial(price, (0.5, 1.0, 2.0), {price: costs})


def parts(size=0.6):
    """A model, its tokenizer, and two steerings of it, the first with a dial."""
    tokenizer = small_tokenizer()
    model = small_model(len(tokenizer))
    first, second = (random_maps(model, seed, size) for seed in (0, 1))
    return model, tokenizer, {"casual": first.with_dial(dial()), "plain": second}


def desk(**options):
    model, tokenizer, steerings = parts()
    return Desk(Writer(model, tokenizer, "a small model", PROMPTS), steerings, **options)


def alone(on=(), prompts=PROMPTS, sampling=SAMPLING):
    """What a model of one's own says under steerings and strengths, without any desk."""
    model, tokenizer, steerings = parts()
    handles = [steerings[name].attach(model, strength) for name, strength in on]
    assert len(lineas.attached(model)) == len(handles)
    new_tokens, temperature, seed = sampling
    return evaluation.continuations(
        model, prompts, tokenizer=tokenizer, new_tokens=new_tokens, temperature=temperature, seed=seed
    )
