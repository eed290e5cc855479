"""An authors' checkpoint: put in Hugging Face's names, and checked."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from retrieval_engine.errors import CheckpointInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Names = Sequence[tuple[str, str]]
Rules = Mapping[str, str]
_SHOWN = 20
_KNOWN = (
    "known: BLIP retrieval (text_encoder, itm_head), captioning (text_decoder), pre-training "
    "(both), and LAVIS's BLIP-2 Q-Former (Qformer.bert, itm_head)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """An authors' checkpoint in Hugging Face's names, ready to be written.

    Attributes:
        kind: what it was recognised as, e.g. `blip-retrieval`.
        config: of the model, image size included.
        models: the transformers classes that load it.
        tensors: in Hugging Face's names.
        names: pairs of the authors' and HF's fragments of names.
        dropped: by rule, the authors' names of what is left out.
        special_tokens: added to the vocabulary in this order, the first as its `bos_token`.
        mean: of the pixels' channels.
        std: of the pixels' channels.
        temperature: of the contrastive loss; no inference uses it.
        notes: what a reader of the import should know, one line each.
    """

    kind: str
    config: "PreTrainedConfig"
    models: "tuple[type[PreTrainedModel], ...]"
    tensors: Mapping[str, torch.Tensor]
    names: Names
    dropped: Mapping[str, list[str]]
    special_tokens: tuple[str, ...]
    mean: list[float]
    std: list[float]
    temperature: float | None = None
    notes: list[str] = field(default_factory=list)


def unknown(parts: set[str]) -> CheckpointInvalid:
    """Why no family knows a checkpoint, by the first parts of its tensors' names."""
    seems = ""
    if {"vision_model", "qformer"} & parts:
        seems = (
            "is in Hugging Face's names, as training loops around transformers save it: say which "
            "model it was trained from, `base=ID`"
        )
    elif {"opt_proj", "t5_proj", "llm_proj"} & parts:
        seems = (
            "is BLIP-2 with a language model: use the hub's Salesforce/blip2-opt-2.7b and others"
        )
    elif "cls_head" in parts:
        seems = "is BLIP for NLVR2, which has nothing to retrieve with"
    elif {"text_encoder", "text_decoder"} <= parts:
        seems = "is BLIP for question answering, which has nothing to retrieve with"
    first = ", ".join(sorted(parts)[:12]) + (" …" if len(parts) > 12 else "")
    return CheckpointInvalid(
        f"the checkpoint {seems}" if seems else f"unknown checkpoint: keys {first}", hint=_KNOWN
    )


def rename(name: str, names: Names) -> str:
    """A tensor's name with fragments replaced.

    Those that begin with a dot are replaced anywhere, others where the name starts with them.
    """
    for old, new in names:
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def rename_back(name: str, names: Names) -> str:
    """The authors' name of a tensor that has Hugging Face's."""
    return rename(name, [(new, old) for old, new in reversed(names)])


def drop(
    tensors: Mapping[str, torch.Tensor], rules: Rules
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Part tensors into those kept and the names of those that a rule drops, by rule.

    Args:
        tensors: by name.
        rules: regular expression of the names, by what the rule is called.
    """
    dropped: dict[str, list[str]] = {}
    kept = {}
    for name, tensor in tensors.items():
        rule = next((r for r, pattern in rules.items() if re.search(pattern, name)), None)
        if rule is None:
            kept[name] = tensor
        else:
            dropped.setdefault(rule, []).append(name)
    return kept, dropped


def check(translation: Translation) -> None:
    """Compare the tensors with what the transformers classes expect, and look for NaN.

    Raises:
        CheckpointInvalid: tensors are missing, unexpected, of another shape, or not finite.
    """
    with torch.device("meta"):
        models = [model(translation.config) for model in translation.models]
    if found := problems(translation.tensors, models, translation.names):
        raise CheckpointInvalid(
            f"this is no whole {translation.kind} checkpoint: {found}",
            hint="recognised by its keys; give the file as its authors' code saved it",
        )


def tied_names(model: "PreTrainedModel") -> set[str]:
    """Second names of a model's tensors; its files hold them under the first ones."""
    ties = getattr(model.config, "tie_word_embeddings", True)
    return set(model._tied_weights_keys or ()) if ties else set()


def problems(
    seen: Mapping[str, torch.Tensor], models: "Iterable[PreTrainedModel]", names: Names = ()
) -> str:
    """What keeps tensors from being those of transformers models; empty when nothing does.

    Args:
        seen: in Hugging Face's names.
        models: without weights; all of their tensors are wanted.
        names: the authors' fragments of names, which the answer uses, and Hugging Face's.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for model in models:
        state, tied = model.state_dict(), tied_names(model)
        expected |= {name: tuple(t.shape) for name, t in state.items() if name not in tied}

    def authors(found: Iterable[str]) -> list[str]:
        return [rename_back(name, names) for name in found]

    kinds = {
        "missing": authors(expected.keys() - seen.keys()),
        "unexpected": authors(seen.keys() - expected.keys()),
        "of another shape": [
            f"{rename_back(name, names)} {tuple(seen[name].shape)}, expected {shape}"
            for name, shape in expected.items()
            if name in seen and tuple(seen[name].shape) != shape
        ],
        "not finite": authors(n for n, t in seen.items() if not bool(torch.isfinite(t).all())),
    }
    return "; ".join(f"{len(v)} {what}: {_listed(v)}" for what, v in kinds.items() if v)


def _listed(names: list[str]) -> str:
    rest = f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + rest
