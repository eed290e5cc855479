"""BLIP's text side in training, driven from vision states (Li et al., ICML 2022).

Traps: ITM reads [ENC] first, ITC [CLS]; a caption begins with [DEC]; BLIP's losses skip the prompt
and padding; what full fine-tuning of the tower changes makes every stored state stale.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.modeling_blip import BlipPreTrainedModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from retrieval_engine.models import text
from retrieval_engine.models.attend import keys_values_of
from retrieval_engine.models.blip.captioner import PROMPT, BlipDecodingState
from retrieval_engine.models.blip.cross_encoder import open_cross_encoder
from retrieval_engine.models.blip.hybrid import load_captioning, load_decoder, load_retrieval
from retrieval_engine.models.blip.likelihood import decoder_states
from retrieval_engine.models.blip.settings import (
    MAX_TOKENS,
    MAX_WORDS,
    BlipSettings,
    part_of,
    refuse_answering,
)
from retrieval_engine.models.captioner import DecodingState, generation_defaults
from retrieval_engine.models.checkpoint import Checkpoint, weight_digests
from retrieval_engine.models.learner import Task
from retrieval_engine.models.loading import load_config, load_model, load_tokenizer
from retrieval_engine.models.preprocess import read_preprocessor

_CAPTION_TOKENS = 40  # BLIP_Decoder.forward
Seen = list[tuple[Tensor, Tensor]]


class RetrievalSide(BlipPreTrainedModel):  # type: ignore[misc]
    """`BlipForImageTextRetrieval` without its vision tower."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        words = config.text_config
        self.text_encoder = BlipTextModel(words, add_pooling_layer=False)
        self.vision_proj = nn.Linear(
            config.vision_config.hidden_size, config.image_text_hidden_size
        )
        self.text_proj = nn.Linear(words.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(words.hidden_size, 2)
        self.post_init()


class CaptionSide(BlipPreTrainedModel):  # type: ignore[misc]
    """`BlipForConditionalGeneration` without its vision tower."""

    _tied_weights_keys = BlipForConditionalGeneration._tied_weights_keys

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """Those of the decoder: transformers ties its head to them."""
        return self.text_decoder.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """See `get_input_embeddings`."""
        return self.text_decoder.get_output_embeddings()


def open_learner(
    checkpoint: Checkpoint,
    task: Task,
    *,
    with_tower: bool,
    dtype: torch.dtype,
    quantize: str,
) -> "BlipRetrieval | BlipCaption":
    """See `learner.open_learner`."""
    load: Callable[..., Any]
    if task is Task.RETRIEVAL:
        load = load_retrieval if with_tower else partial(load_model, RetrievalSide)
    else:
        refuse_answering(checkpoint)
        load = load_captioning if with_tower else partial(load_decoder, CaptionSide)
    model = load(checkpoint, dtype=dtype, quantize=quantize)
    return (BlipRetrieval if task is Task.RETRIEVAL else BlipCaption)(checkpoint, model)


class _Blip:
    """What both tasks share; see `Learner`."""

    targets = "text"

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.model = model
        config = load_config(BlipConfig, checkpoint)
        rows = config.text_config.vocab_size
        self.tokenizer = load_tokenizer(BertTokenizer, checkpoint, rows=rows)
        vision = config.vision_config
        settings = BlipSettings.of(config)
        weights = weight_digests(checkpoint.path, part_of, {"vision": settings.tower})
        backbone = ("vision_model.backbone.",) if settings.backbone else ()
        self.frozen: tuple[str, ...] = backbone
        self.pooling = settings.pooling
        self.vision = weights["vision"]
        self.preprocessor = read_preprocessor(checkpoint, vision.image_size)
        self.width = int(config.text_config.hidden_size)
        self.pad_id = int(self.tokenizer.pad_token_id)

    def see(self, pixels: Tensor) -> Tensor:
        """See `Learner.see`."""
        states: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return states


class BlipRetrieval(_Blip):
    """See `RetrievalLearner`."""

    momentum = True

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model)
        known = self.tokenizer.get_vocab().get("[ENC]")
        self._enc = int(model.config.text_config.vocab_size - 1 if known is None else known)
        model.itm_head.float()  # whatever the rest is: match logits are never of half precision
        self.cross = open_cross_encoder(model, model.config)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `RetrievalLearner.tokenize`."""
        return text.token_ids(self.tokenizer, texts, max_words=MAX_WORDS, max_tokens=MAX_TOKENS)

    def match_ids(self, ids: Tensor) -> Tensor:
        """See `RetrievalLearner.match_ids`."""
        first = torch.full_like(ids[..., :1], self._enc)
        return torch.cat((first, ids[..., 1:]), dim=-1)

    def embed_images(self, states: Tensor) -> Tensor:
        """See `RetrievalLearner.embed_images`."""
        return normalize(self.model.vision_proj(states[:, 0]).float(), dim=-1)[:, None]

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `RetrievalLearner.embed_texts`."""
        states = self.model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = text.pooled(states, mask, self.pooling)
        return normalize(self.model.text_proj(pooled).float(), dim=-1)

    def copy(self) -> "BlipRetrieval":
        """See `RetrievalLearner.copy`."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model)
        twin.cross = open_cross_encoder(twin.model, twin.model.config)
        return twin


class BlipCaption(_Blip):
    """See `CaptionLearner`."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model)
        words = model.config.text_config
        self._start, self.end_id = int(words.bos_token_id), int(words.sep_token_id)
        self.prompt = generation_defaults(checkpoint.path, PROMPT).prompt

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """See `CaptionLearner.encode`; `BLIP_Decoder.forward` of the authors."""
        prompted = [self.prompt + text.pre_caption(t, MAX_WORDS) for t in texts]
        given = len(self.tokenizer(self.prompt)["input_ids"]) - 1
        rows = self.tokenizer(prompted, truncation=True, max_length=_CAPTION_TOKENS)["input_ids"]
        return [[self._start, *row[1:]] for row in rows], given

    def decode(self, ids: Sequence[int]) -> str:
        """See `CaptionLearner.decode`."""
        prompt = self.tokenizer(self.prompt)["input_ids"][:-1]
        whole: str = self.tokenizer.decode(
            [*prompt, *ids], skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        return whole[len(self.prompt) :]

    def read(self, states: Tensor) -> Seen:
        """See `CaptionLearner.read`: (i, h, t, d) keys and values of each layer."""
        layers = self.model.text_decoder.bert.encoder.layer
        return [keys_values_of(layer.crossattention.self, states) for layer in layers]

    def begin(self, states: Tensor) -> tuple[list[int], Tensor, DecodingState]:
        """See `CaptionLearner.begin`."""
        [whole], given = self.encode([""])
        state = BlipDecodingState(self.model.text_decoder, states, formed=True)
        ids = torch.tensor(whole[:given], device=states.device)
        return whole[:given], state.read(ids.expand(len(states), 1, -1))[:, 0], state

    def logits(self, seen: Seen, ids: Tensor, mask: Tensor) -> Tensor:
        """See `CaptionLearner.logits`."""
        decoder = self.model.text_decoder
        found: Tensor = decoder.cls(decoder_states(decoder, seen, ids))
        return found.float().view(*ids.shape, -1)
