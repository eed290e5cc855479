"""What of a model can be written as a graph: its calls, and inputs to trace and to try them with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models import open_encoder
from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.captioner import open_captioner, writes_captions
from retrieval_engine.models.dual_encoder import DualEncoder, ImageEncoder

TEXTS = (
    "a dog on the grass",
    "a man in a red jacket is riding a brown horse along the beach",
    "children",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A part before it is written.

    Attributes:
        owner: the encoder or captioner whose weights it has.
        call: its inputs in their order -> its outputs in theirs.
        inputs: the free sizes of each, n of images and l of tokens; all but the last are free.
        outputs: names.
        some: inputs for so many images.
    """

    owner: ImageEncoder
    call: Callable[..., tuple[Tensor, ...]]
    inputs: Mapping[str, str]
    outputs: Sequence[str]
    some: Callable[[int], tuple[NDArray[Any], ...]]


def graphs_of(model: str, adapter: str) -> dict[str, Graph]:
    """The parts that a model has, by name."""
    captioner: Any = None
    if writes_captions(model):
        captioner = open_captioner(model, device="cpu", dtype="float32", adapter=adapter)
    try:
        encoder: Any = open_encoder(model, device="cpu", dtype="float32", adapter=adapter)
    except CheckpointInvalid:
        if captioner is None:
            raise
        encoder = captioner
    found = {"image": _image(encoder)}
    if isinstance(encoder, DualEncoder):
        found["text"] = _text(encoder)
        with suppress(UsageError):  # it has none
            found["matcher"] = _matcher(encoder)
    if hasattr(captioner, "next_logits"):
        found["decoder"] = _decoder(captioner)
    return found


def _image(encoder: ImageEncoder) -> Graph:
    names = [feature.name for feature in encoder.image_features()]
    side = encoder.preprocessor.image_size
    mean, std = (torch.tensor(v) for v in (encoder.preprocessor.mean, encoder.preprocessor.std))

    def call(pixels: Tensor) -> tuple[Tensor, ...]:
        states = encoder.vision_tower(((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2))
        found = encoder.of_vision_states(states, [name for name in names if name != "tokens"])
        return tuple((found | {"tokens": states})[name] for name in names)

    def some(n: int) -> tuple[NDArray[Any], ...]:
        return (np.random.default_rng(n).integers(256, size=(n, side, side, 3), dtype=np.uint8),)

    return Graph(owner=encoder, call=call, inputs={"pixels": "n"}, outputs=names, some=some)


def _text(encoder: DualEncoder) -> Graph:
    names = [f.name for f in encoder.text_features() if f.name not in ("token_ids", "token_mask")]

    def call(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        found = encoder.of_text_states(encoder.text_tower(ids, mask).float(), names)
        return tuple(found[name] for name in names)

    def some(n: int) -> tuple[NDArray[Any], ...]:
        return _padded(encoder.tokenize(TEXTS[:n]), encoder)

    inputs = {"input_ids": "nl", "attention_mask": "nl"}
    return Graph(owner=encoder, call=call, inputs=inputs, outputs=names, some=some)


def _matcher(encoder: DualEncoder) -> Graph:
    matcher = encoder.matcher()

    def call(tokens: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        seen = matcher.cross.keys_values(tokens)
        return (matcher.cross.logits(seen, ids[:, None], mask[:, None])[:, 0].float(),)

    def some(n: int) -> tuple[NDArray[Any], ...]:
        return _tokens(encoder, n), *_padded(matcher.tokenized(TEXTS[:n]), encoder)

    inputs = {"tokens": "n", "input_ids": "nl", "attention_mask": "nl"}
    return Graph(owner=encoder, call=call, inputs=inputs, outputs=["logits"], some=some)


def _decoder(captioner: Any) -> Graph:
    def call(tokens: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return (captioner.next_logits(tokens, ids),)

    def some(n: int) -> tuple[NDArray[Any], ...]:
        rows = [captioner.prompt_ids(text) for text in TEXTS[:n]]
        cut = min(map(len, rows))
        ids = np.array([row[:cut] for row in rows], dtype=np.int64)
        return _tokens(captioner, n), ids

    inputs = {"tokens": "n", "input_ids": "nl"}
    return Graph(owner=captioner, call=call, inputs=inputs, outputs=["logits"], some=some)


def _tokens(owner: ImageEncoder, n: int) -> NDArray[np.float32]:
    """States of n images."""
    [pixels] = _image(owner).some(n)
    return owner.encode_images(pixels, ["tokens"])["tokens"].astype(np.float32)


def _padded(ids: list[list[int]], encoder: DualEncoder) -> tuple[NDArray[np.int64], ...]:
    padded, mask = pad_tokens(ids, max(map(len, ids)), pad=encoder.tokenizer.pad_token_id)
    return padded.astype(np.int64), mask.astype(np.int64)
