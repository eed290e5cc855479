"""Recognises an authors' checkpoint by its keys."""

from collections.abc import Iterable

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.import_names import Kind

_KNOWN = (
    "known: BLIP retrieval (text_encoder, itm_head), captioning (text_decoder), pre-training "
    "(both), and LAVIS's BLIP-2 Q-Former (Qformer.bert, itm_head)"
)


def recognise(names: Iterable[str]) -> Kind:
    """The kind of a checkpoint with tensors of these names.

    Raises:
        CheckpointInvalid: it is of none that can be imported; the message says what it seems to be.
    """
    parts = {name.split(".")[0] for name in names}
    matches = {"vision_proj", "text_proj", "itm_head"} & parts
    seems = ""
    if {"vision_model", "qformer"} & parts:
        seems = "is in Hugging Face's names already: put it beside its config.json"
    elif {"opt_proj", "t5_proj", "llm_proj"} & parts:
        seems = (
            "is BLIP-2 with a language model: use the hub's Salesforce/blip2-opt-2.7b and others"
        )
    elif "cls_head" in parts:
        seems = "is BLIP for NLVR2, which has nothing to retrieve with"
    elif "Qformer" in parts and matches:
        return Kind.BLIP2_QFORMER
    elif {"text_encoder", "text_decoder"} <= parts:
        if matches:
            return Kind.BLIP_PRETRAINING
        seems = "is BLIP for question answering, which has nothing to retrieve with"
    elif "text_encoder" in parts:
        return Kind.BLIP_RETRIEVAL
    elif "text_decoder" in parts:
        return Kind.BLIP_CAPTIONING
    raise CheckpointInvalid(
        f"the checkpoint {seems}" if seems else f"unknown checkpoint: keys {_listed(parts)}",
        hint=_KNOWN,
    )


def _listed(parts: set[str]) -> str:
    return ", ".join(sorted(parts)[:12]) + (" …" if len(parts) > 12 else "")
