"""BLIP-2's Q-Former and language model in training, driven from vision states (Li et al., 2023).

Traps: the score is the maximum over the 32 queries; the Q-Former is meant for float32; OPT ends a
sentence at the line break; T5 reads the prompt in its encoder; a frozen language model still
carries the gradient to the Q-Former.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertTokenizer, Blip2Config
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel, Blip2VisionModel

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models import text
from retrieval_engine.models.blip2 import part_of
from retrieval_engine.models.blip2.captioner import (
    PROMPT,
    OptDecodingState,
    SpeakingPart,
    T5DecodingState,
    end_token,
)
from retrieval_engine.models.blip2.cross_encoder import Blip2CrossEncoder
from retrieval_engine.models.blip2.encoder import MAX_TOKENS, MAX_WORDS
from retrieval_engine.models.blip2.parts import QueryPart, RetrievalPart, ln_vision_eps
from retrieval_engine.models.captioner import DecodingState, generation_defaults
from retrieval_engine.models.checkpoint import Checkpoint, weight_digests
from retrieval_engine.models.learner import Task
from retrieval_engine.models.loading import load_config, load_model, load_tokenizer
from retrieval_engine.models.preprocess import read_preprocessor

_CAPTION_TOKENS = 32  # LAVIS's max_txt_len


class Speaking(SpeakingPart, QueryPart):
    """Q-Former and language model: `Blip2ForConditionalGeneration` without its vision tower."""


class _Tower(Blip2PreTrainedModel):  # type: ignore[misc]
    """Adds the vision tower to a part."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.vision_model.post_layernorm.eps = ln_vision_eps(config)
        self.post_init()


class SeeingRetrieval(_Tower, RetrievalPart):
    """`RetrievalPart` with the vision tower."""


class SeeingSpeaking(_Tower, Speaking):
    """`Speaking` with the vision tower."""


def open_learner(
    checkpoint: Checkpoint,
    task: Task,
    *,
    with_tower: bool,
    dtype: torch.dtype,
    quantize: str,
) -> "Blip2Retrieval | Blip2Caption":
    """See `learner.open_learner`."""
    config = load_config(Blip2Config, checkpoint)
    speaks = "Blip2ForConditionalGeneration" in (config.architectures or ())
    if speaks != (task is Task.CAPTION):
        wanted = "with a language model" if task is Task.CAPTION else "for retrieval (ITM)"
        raise CheckpointInvalid(
            f"{checkpoint.name} learns no {task}: `architectures` in config.json has "
            f"{', '.join(config.architectures or ()) or 'no class that it names'}",
            hint=f"use a checkpoint {wanted}",
        )
    if task is Task.RETRIEVAL:
        part = SeeingRetrieval if with_tower else RetrievalPart
        loaded = load_model(part, checkpoint, dtype=torch.float32, quantize=quantize)
        return Blip2Retrieval(checkpoint, config, loaded)
    kind = SeeingSpeaking if with_tower else Speaking
    speaking = load_model(kind, checkpoint, dtype=dtype, quantize=quantize)
    if not quantize:
        speaking.qformer.float()
        speaking.query_tokens.data = speaking.query_tokens.data.float()
    return Blip2Caption(checkpoint, config, speaking)


class _Blip2:
    """What both tasks share; see `Learner`."""

    frozen: tuple[str, ...] = ()
    targets = "qformer"

    def __init__(self, checkpoint: Checkpoint, config: Blip2Config, model: Any) -> None:
        self.model = model
        vision = config.vision_config
        eps = [vision.layer_norm_eps, ln_vision_eps(config)]
        settings: list[object] = [vision.num_attention_heads, *eps, vision.hidden_act]
        weights = weight_digests(checkpoint.path, part_of, {"vision": settings})
        self.vision = weights["vision"]
        self.preprocessor = read_preprocessor(checkpoint, vision.image_size)
        self.width = int(config.qformer_config.hidden_size)

    def see(self, pixels: Tensor) -> Tensor:
        """See `Learner.see`."""
        states: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return states


class Blip2Retrieval(_Blip2):
    """See `RetrievalLearner`."""

    momentum = False

    def __init__(self, checkpoint: Checkpoint, config: Blip2Config, model: Any) -> None:
        super().__init__(checkpoint, config, model)
        self.tokenizer = load_tokenizer(
            BertTokenizer, checkpoint, rows=config.qformer_config.vocab_size
        )
        self.pad_id = int(self.tokenizer.pad_token_id)
        self.cross = Blip2CrossEncoder(model)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `RetrievalLearner.tokenize`."""
        return text.token_ids(self.tokenizer, texts, max_words=MAX_WORDS, max_tokens=MAX_TOKENS)

    def match_ids(self, ids: Tensor) -> Tensor:
        """See `RetrievalLearner.match_ids`: [CLS] stays."""
        return ids

    def embed_images(self, states: Tensor) -> Tensor:
        """See `RetrievalLearner.embed_images`."""
        queries = self.model.query_states(states)
        return normalize(self.model.vision_projection(queries).float(), dim=-1)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `RetrievalLearner.embed_texts`."""
        states = self.model.text_states(ids, mask)
        return normalize(self.model.text_projection(states[:, 0]).float(), dim=-1)

    def copy(self) -> "Blip2Retrieval":
        """See `RetrievalLearner.copy`."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model)
        twin.cross = Blip2CrossEncoder(twin.model)
        return twin


class Blip2Caption(_Blip2):
    """See `CaptionLearner`. Full fine-tuning leaves the language model alone, as LAVIS does."""

    frozen = ("language_model.",)

    def __init__(self, checkpoint: Checkpoint, config: Blip2Config, model: Any) -> None:
        super().__init__(checkpoint, config, model)
        self.tokenizer = load_tokenizer(
            AutoTokenizer, checkpoint, rows=config.text_config.vocab_size
        )
        words = config.text_config
        self.targets = str(words.model_type)
        self.width = int(words.hidden_size)
        pad = words.pad_token_id if self.tokenizer.pad_token_id is None else None
        self.pad_id = int(self.tokenizer.pad_token_id if pad is None else pad)
        said = generation_defaults(checkpoint.path, PROMPT)
        self.end_id, self.prompt = end_token(said, config), said.prompt
        self._writes_on = bool(config.use_decoder_only_language_model)
        read = self.tokenizer(self.prompt)["input_ids"] or [int(words.bos_token_id)]
        self._read = torch.tensor(read)
        self._given = read if self._writes_on else [int(words.decoder_start_token_id)]

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """See `CaptionLearner.encode`."""
        space = " " if self._writes_on else ""  # a word after the prompt begins with its blank
        cleaned = [space + text.pre_caption(t, MAX_WORDS) for t in texts]
        rows = self.tokenizer(cleaned, add_special_tokens=False)["input_ids"]
        room = _CAPTION_TOKENS - 1
        return [[*self._given, *row[:room], self.end_id] for row in rows], len(self._given)

    def decode(self, ids: Sequence[int]) -> str:
        """See `CaptionLearner.decode`."""
        found: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return found.strip()

    def read(self, states: Tensor) -> Tensor:
        """See `CaptionLearner.read`: (i, q, h) queries, or what T5's encoder makes of them."""
        model = self.model
        projection = model.language_projection
        found: Tensor = projection(model.query_states(states).to(projection.weight.dtype))
        if self._writes_on:
            return found
        prompt = model.language_model.get_input_embeddings()(self._read.to(found.device))
        embeds = torch.cat((found, prompt.expand(len(found), -1, -1).to(found)), dim=1)
        encoded: Tensor = model.language_model.get_encoder()(inputs_embeds=embeds).last_hidden_state
        return encoded

    def begin(self, states: Tensor) -> tuple[list[int], Tensor, DecodingState]:
        """See `CaptionLearner.begin`."""
        language, seen = self.model.language_model, self.read(states)
        ids = torch.tensor(self._given, device=seen.device).expand(len(seen), -1)
        if not self._writes_on:
            t5 = T5DecodingState(language, seen)
            return self._given, t5.read(ids)[:, 0], t5
        words = language.get_input_embeddings()(ids)
        state = OptDecodingState(language)
        logits = state.read(inputs_embeds=torch.cat((seen.to(words), words), dim=1))
        return self._given, logits[:, 0], state

    def logits(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """See `CaptionLearner.logits`."""
        i, n, length = ids.shape
        language = self.model.language_model
        seen = seen.repeat_interleave(n, dim=0)
        flat, keep = ids.view(i * n, length), mask.view(i * n, length)
        if self._writes_on:
            q = seen.shape[1]
            words = language.get_input_embeddings()(flat)
            out = language(
                inputs_embeds=torch.cat((seen.to(words), words), dim=1),
                attention_mask=torch.cat((keep.new_ones(len(flat), q), keep), dim=1),
                use_cache=False,
            ).logits[:, q:]
        else:
            out = language(
                encoder_outputs=BaseModelOutput(last_hidden_state=seen),
                decoder_input_ids=flat,
                decoder_attention_mask=keep,
                use_cache=False,
            ).logits
        found: Tensor = out.float().view(i, n, length, -1)
        return found
