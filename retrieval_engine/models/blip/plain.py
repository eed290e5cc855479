"""BLIP's modules without transformers, whose import takes longer than a question or a caption.

The names, operations and order of transformers' `BlipForImageTextRetrieval` and
`BlipForConditionalGeneration` with our fused attention, for inference alone: equal to them bit by
bit on a CPU (tests compare). `plain_retrieval` and `plain_captioning` answer None whenever they are
not certain of that, or anything is wrong with the files; then transformers' model is loaded, and
what is wrong is said there.
"""

from collections.abc import Callable, Set
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.blip.hybrid_tower import backbone_name
from retrieval_engine.models.blip.plain_parts import (
    PlainHybridTower,
    TextDecoder,
    TextTower,
    VisionTower,
)
from retrieval_engine.models.blip.settings import (
    BlipSettings,
    decoder_from_encoder,
    decoder_twin,
    shares_decoder,
)
from retrieval_engine.models.checkpoint import Checkpoint, read_config, tied_twin, weight_files
from retrieval_engine.models.wordpiece import WordPiece, open_wordpiece

Model = TypeVar("Model", bound=nn.Module)


class PlainBlip(nn.Module):
    """What both models have: a vision tower, a configuration and one dtype."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        hybrid = backbone_name(config.vision_config)
        tower: Callable[[Any], nn.Module] = PlainHybridTower if hybrid else VisionTower
        self.vision_model = tower(config.vision_config)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype


class PlainRetrieval(PlainBlip):
    """`BlipForImageTextRetrieval`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision, words = config.vision_config.hidden_size, config.text_config.hidden_size
        self.text_encoder = TextTower(config.text_config)
        self.vision_proj = nn.Linear(vision, config.image_text_hidden_size)
        self.text_proj = nn.Linear(words, config.image_text_hidden_size)
        self.itm_head = nn.Linear(words, 2)


class PlainCaptioning(PlainBlip):
    """`BlipForConditionalGeneration`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.text_decoder = TextDecoder(config.text_config)


class PlainDecoder(nn.Module):
    """The text decoder of `BlipForConditionalGeneration` alone."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.text_decoder = TextDecoder(config.text_config)


def plain_retrieval(checkpoint: Checkpoint) -> tuple[PlainRetrieval, WordPiece] | None:
    """A retrieval model in float32 on the CPU, and its tokenizer; None where transformers must."""
    return _opened(checkpoint, PlainRetrieval)


def plain_captioning(checkpoint: Checkpoint) -> tuple[PlainCaptioning, WordPiece] | None:
    """A captioning model in float32 on the CPU, and its tokenizer; None where transformers must."""
    return _opened(checkpoint, PlainCaptioning)


def plain_decoder(checkpoint: Checkpoint) -> TextDecoder | None:
    """The text decoder in float32 on the CPU; None where transformers must load it."""
    found = _opened(checkpoint, PlainDecoder)
    return found[0].text_decoder if found else None


def _opened(checkpoint: Checkpoint, kind: Callable[[Any], Model]) -> tuple[Model, WordPiece] | None:
    if checkpoint.adapter is not None:
        return None
    try:
        said = read_config(checkpoint.path)
        words = open_wordpiece(checkpoint.path)
        config = _stated(said)
        if words is None or config is None:
            return None
        if max(words.get_vocab().values()) >= config.text_config.vocab_size:
            return None
        with torch.device("meta"):
            model = kind(config)
        names = set(model.state_dict())
        tensors = _tensors(checkpoint, names, shared=shares_decoder(said))
        model.load_state_dict({name: tensors[name] for name in names}, assign=True)
    except (CheckpointInvalid, SafetensorError, OSError, LookupError, TypeError, AttributeError):
        return None
    except (RuntimeError, ValueError):  # sizes that config.json does not say
        return None
    return model.eval(), words


def _stated(said: Any) -> Any | None:
    """The configuration as transformers would have it, where the file states all that is read."""
    settings = BlipSettings.stated(said)
    if settings is None or settings.vision[2] != "gelu" or settings.text[2] != "gelu":
        return None
    vision, words = said["vision_config"], said["text_config"]
    if not (words["is_decoder"] and words["bos_token_id"] and words["sep_token_id"]):
        return None
    if said.get("tie_word_embeddings", True) and words.get("tie_word_embeddings", True):
        parts = {
            "vision_config": SimpleNamespace(**vision),
            "text_config": SimpleNamespace(**words),
        }
        return SimpleNamespace(**{**said, **parts}, to_dict=lambda: said)
    return None


def _tensors(checkpoint: Checkpoint, names: Set[str], *, shared: bool) -> dict[str, Tensor]:
    """Tensors of these names in float32; what a second name has it has, too.

    Raises:
        TypeError: they are no safetensors.
        ValueError: a second name has another tensor.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(checkpoint.path):
        if file.suffix != ".safetensors":
            raise TypeError(f"{file} is pickled")
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name in names or decoder_twin(name) in names:
                    found[name] = tensors.get_tensor(name)
    if shared:
        found = decoder_from_encoder(found)
    start = "text_decoder.cls.predictions.decoder."
    for name in (f"{start}weight", f"{start}bias"):
        twin = found.get(tied_twin(name) or "")
        if twin is not None and not torch.equal(found.setdefault(name, twin), twin):
            raise ValueError(f"{name} is not tied")
    once = {id(tensor): tensor.float() for tensor in found.values()}
    return {name: once[id(tensor)] for name, tensor in found.items()}
