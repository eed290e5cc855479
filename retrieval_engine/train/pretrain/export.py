"""Writes a trained model as one directory that transformers' BLIP classes load."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from retrieval_engine.models.checksums import CHECKSUMS, write_checksums
from retrieval_engine.models.preprocess import CLIP_MEAN, CLIP_STD, preprocessor_config
from retrieval_engine.models.write_checkpoint import write_json, write_weights
from retrieval_engine.records import Json
from retrieval_engine.train.pretrain.config import PROMPT
from retrieval_engine.train.pretrain.model import PretrainModel

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipConfig

_TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
_NEW_TOKENS = 32
_UNTRAINED = "Its matching head (ITM) is not trained: do not re-rank with it.\n\n"
_OPTION = {"matrix_lr": "lr"}  # settings whose option has another name


def export(
    model: PretrainModel,
    tokenizer: "BertTokenizer",
    out: Path,
    *,
    dtype: torch.dtype,
    facts: Mapping[str, Json],
) -> None:
    """Write config, weights, tokenizer, preprocessing, generation settings and a model card.

    `BlipForImageTextRetrieval` and `BlipForConditionalGeneration` both load the directory and
    share its vision tower. What decoder and encoder share is written twice, because each class
    looks for its own names.

    Args:
        model: the trained weights.
        tokenizer: its tokenizer.
        out: directory; made where missing.
        dtype: of the weights on disk.
        facts: for training.json and the card: config, data, report.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(_card(out.name, facts), encoding="utf-8")
    write_directory(
        out,
        model.config,
        tokenizer,
        _weights(model, dtype),
        generation={"max_new_tokens": _NEW_TOKENS, "prompt": PROMPT},
        look=preprocessor_config(model.config.vision_config.image_size, CLIP_MEAN, CLIP_STD),
        facts=facts,
    )


def write_directory(
    out: Path,
    config: "BlipConfig",
    tokenizer: "BertTokenizer",
    tensors: Mapping[str, Tensor],
    *,
    generation: Mapping[str, Any],
    look: Mapping[str, Json],
    facts: Mapping[str, Json],
) -> None:
    """Write all files but the model card; training.json is the last.

    Args:
        out: directory, which is there.
        config: of the model.
        tokenizer: its tokenizer.
        tensors: its weights, all of one dtype.
        generation: settings of writing captions.
        look: of its preprocessing, as `preprocessor_config` gives them.
        facts: for training.json.
    """
    config.architectures = ["BlipForImageTextRetrieval", "BlipForConditionalGeneration"]
    for part in (config, config.text_config, config.vision_config):
        part.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(out)
    write_weights(tensors, out)
    text = config.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.sep_token_id,
        pad_token_id=text.pad_token_id,
        **generation,
    ).save_pretrained(out)
    tokenizer.backend_tokenizer.no_truncation()  # of the training; not a property of the words
    tokenizer.model_max_length = text.max_position_embeddings
    tokenizer.save_pretrained(out)
    write_json(out / "preprocessor_config.json", {**look, "processor_class": "BlipProcessor"})
    beside = ("training.json", "README.md", CHECKSUMS)
    endings = (".json", ".safetensors", ".txt")
    names = [file.name for file in out.iterdir() if file.suffix in endings]
    write_checksums(out, [name for name in names if name not in beside])
    write_json(out / "training.json", facts)


def _weights(model: PretrainModel, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = dict(model.retrieval.state_dict())
    for name, tensor in model.text_decoder.state_dict().items():
        if name not in _TIED:
            tensors[f"text_decoder.{name}"] = tensor
    return {name: t.detach().to("cpu", dtype, copy=True) for name, t in tensors.items()}


def how_trained(name: str, facts: Mapping[str, Json]) -> str:
    """The lines of a model card on data, command, steps and what else is in the directory."""
    config, report, changed = (facts[key] for key in ("config", "report", "changed"))
    assert isinstance(config, dict)
    assert isinstance(report, dict)
    assert isinstance(changed, dict)
    options = " ".join(
        f"--{_OPTION.get(key, key).replace('_', '-')} {value!r}" for key, value in changed.items()
    )
    return f"""- Data: `{config["source"]}`, {facts["items"]:,} pictures with {facts["captions"]:,} captions.
- Command: `vlre pretrain '{config["source"]}' {options} --out {name}`
- {report["steps"]:,} steps in {report["minutes"]} minutes of training; weights of step
  {report["best_step"]:,}, the best on held-out items (mean recall {report["mean_recall"]} %).
- `training.json` has every setting, `log.jsonl` every figure on the way, `curves.png` shows them.
"""


def _card(name: str, facts: Mapping[str, Json]) -> str:
    config, report = facts["config"], facts["report"]
    assert isinstance(config, dict)
    assert isinstance(report, dict)
    return f"""---
library_name: transformers
tags: [blip, image-text-retrieval, image-captioning]
---
# {name}

A BLIP of {report["parameters"]:,} weights, trained from scratch by `vlre pretrain`.

{how_trained(name, facts)}
{_UNTRAINED if "itm" not in str(config["objective"]) else ""}It has seen nothing but this data: do not expect it to know anything else.

```python
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

matcher = BlipForImageTextRetrieval.from_pretrained("{name}")
captioner = BlipForConditionalGeneration.from_pretrained("{name}")
```
For matching, the first token of the text must be [ENC], as in BLIP. Captions follow the prompt
`{PROMPT}` or come without one.
"""
