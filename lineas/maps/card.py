"""The README.md beside a steering's maps: a card as the Hugging Face hub shows it."""

import json
from collections.abc import Mapping
from typing import Any

from ..core.text import printable
from . import summary
from .info import base_name, call_of_fit, hub_name, pipeline_facts
from .maps import Maps

CONFIG, TENSORS, CARD, GRID = "steering_config.json", "steering.safetensors", "README.md", "grid.png"
MARK = "Written by lineas. Remove this line to keep your own edits when a steering is saved here again."

TABLE_ROWS = 200

# What `info` may hold, in the order of the card, and how the card calls it.
FACTS = {
    "model": "model", "base_model": "its name on the hub", "revision": "its revision", "model_class": "its class",
    "weights": "digest of its weights", "adapters": "adapters that were on",
    "samples": "samples (source, target)", "data": "digests of the data",
    "method": "method", "within_range": "within the source's range", "recipe": "recipe", "optimizer": "optimizer",
    "loss": "loss", "penalty": "penalty", "ridge": "ridge", "pooling": "pooling", "position": "position",
    "compute_dtype": "computed in", "attached": "while others were on", "seed": "seed",
    "evaluations": "evaluations", "seconds": "seconds", "stopped": "stopped", "made": "made from others",
}  # fmt: skip

# And of what it has of a pipeline.
FACTS_OF_PIPELINE = {
    "class": "pipeline", "component": "its network that is steered", "call": "called with", "at": "steps that counted",
    "steps": "steps of a call",
}  # fmt: skip

TEXT = """\
---
{front}
---

<!-- {mark} -->

# Steering of {model}

Maps for activation steering: at each of the {count} sites below, every unit's activation z becomes
weight * z + bias. {moved} of {units} units are changed; the model's own weights are not touched. Made with
`lineas`, an implementation of [LinEAS](https://arxiv.org/abs/2503.10679).

## Use

```python
{code}
```

`{config}` and `{tensors}` hold numbers and text only: nothing is unpickled, and nothing in them is run.
"""


CODE = """\
import lineas
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base})
steering = lineas.Steering.from_pretrained({here})
with steering.apply(model, strength=1.0):  # 0 is the model as it was
    ..."""

CODE_OF_PIPELINE = """\
import lineas
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({base})
steering = lineas.Steering.from_pretrained({here})
with steering.apply(pipe, strength=1.0):  # 0 is the pipeline as it was
    picture = pipe({call}).images[0]"""

PICTURE = f"""\
## Pictures

![Pictures of the steered pipeline]({GRID})
"""


def shows_picture(text: str) -> bool:
    return f"]({GRID})" in text


def text_of(maps: Maps, info: Mapping[str, Any], metrics: Mapping[str, Any], has_grid: bool = False) -> str:
    """The whole card. What it is told comes from files and users, so none of it can become markup."""
    model, on_hub, found = base_name(info), hub_name(info), summary.rows(maps)
    where = on_hub or (f"the folder of {model}" if model else "the model it was fitted on")
    text = TEXT.format(
        front=_front(on_hub),
        mark=MARK, model=code(on_hub or model) or "a model",
        count=len(found), moved=sum(row.support for row in found), units=sum(row.units for row in found),
        code=(CODE_OF_PIPELINE if pipeline_facts(info) else CODE).format(
            base=json.dumps(where), here=json.dumps("this folder or repository"), call=_call(info)
        ),
        config=CONFIG, tensors=TENSORS,
    )  # fmt: skip
    facts = _facts(FACTS, info) + _facts(FACTS_OF_PIPELINE, pipeline_facts(info))
    parts = [text, PICTURE] if has_grid else [text]
    if maps.gate is not None:
        facts.append(("gate, which says how much acts", repr(maps.gate)))
    if facts:
        parts.append(_section("How it was made", ("", ""), [(label, code(value)) for label, value in facts]))
    if metrics:
        lines = [(code(name), code(value)) for name, value in metrics.items()]
        parts.append(_section("Measured", ("metric", "value"), lines))
    parts.append(_section("Sites", [code(head) for head in summary.HEADS], [_site(row) for row in found[:TABLE_ROWS]]))
    if len(found) > TABLE_ROWS:
        parts.append(f"and {len(found) - TABLE_ROWS} sites more.\n")
    return "\n".join(parts)


def _facts(labels: Mapping[str, str], info: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(label, info[key]) for key, label in labels.items() if info.get(key) is not None]


def _call(info: Mapping[str, Any]) -> str:
    """Arguments for the example: a prompt, and what the fit's calls had."""
    told = (
        f"{key}={json.dumps(value) if isinstance(value, str) else repr(value)}"
        for key, value in call_of_fit(info).items()
        if key != "prompt"
    )
    return ", ".join([json.dumps("a prompt"), *told])


def code(value: Any) -> str:
    """Any value as inline code in a cell of a table: shown as it is, and never markup."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = printable(text).replace("`", "'").replace("|", "\\|").strip()
    return f"`{text if len(text) <= 300 else text[:300] + ' ...'}`" if text else ""


def _front(model: str) -> str:
    """The YAML that the hub reads, with the base model's name there, if it is known. JSON's strings are YAML's too."""
    lines = ["library_name: lineas"]
    if model:
        lines += [f"base_model: {json.dumps(model)}", "base_model_relation: adapter"]
    return "\n".join([*lines, "tags:", "- lineas", "- activation-steering"])


def _section(title: str, heads, lines) -> str:
    table = [heads, ["---"] * len(heads), *lines]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in table)


def _site(row: summary.Row) -> list[str]:
    name, *numbers = row.texts()
    return [code(name), *numbers]
