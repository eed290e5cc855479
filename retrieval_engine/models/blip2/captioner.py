"""BLIP-2 with a language model (OPT, Flan-T5; Li et al., ICML 2023), from stored vision states.

The Q-Former reads the stored states of the vision tower in float32; its projected queries stand
before the prompt's words. The tower's tokens are those of a BLIP-2 retrieval checkpoint with the
same tower.

Traps: OPT ends a sentence at the line break (`text_config.eos_token_id`, 50118), not at </s>;
with T5 the prompt goes to the encoder and the sentence begins with `decoder_start_token_id`; T5
overflows in float16.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Blip2Config,
    DynamicCache,
    EncoderDecoderCache,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.blip2 import captioner_part_of
from retrieval_engine.models.blip2.image_side import Blip2Images
from retrieval_engine.models.captioner import (
    DEFAULT_LENGTH,
    DecodingState,
    GenerationDefaults,
    generation_defaults,
    rows_of,
    rows_of_images,
    single_end,
)
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.lanes import TOKENIZING
from retrieval_engine.models.loading import load_config, load_tokenizer
from retrieval_engine.records import Feature

PROMPT = "a photo of"  # the paper's, and LAVIS's blip2_caption_*.yaml
_CPU_SENTENCES, _CUDA_SENTENCES = 16, 96
_LONGEST_T5 = 512  # relative positions have no end; captions do


def open_captioner(checkpoint: Checkpoint, *, device: str, dtype: str) -> "Blip2Captioner":
    """Load a `Blip2ForConditionalGeneration`; see `captioning.open_captioner`."""
    config = load_config(Blip2Config, checkpoint)
    if "Blip2ForConditionalGeneration" not in (config.architectures or ()):
        kinds = ", ".join(config.architectures or ()) or "no class that it names"
        raise CheckpointInvalid(
            f"{checkpoint.name} writes no captions: `architectures` in config.json has {kinds}",
            hint="use a checkpoint with a language model such as Salesforce/blip2-opt-2.7b",
        )
    return Blip2Captioner(checkpoint, config, device=device, dtype=dtype)


def end_token(said: GenerationDefaults, config: Blip2Config) -> int:
    """The token that ends a sentence: generation_config.json's, else that of the language model."""
    end = single_end(config.text_config.eos_token_id) if said.end_id is None else said.end_id
    if end is None:
        raise CheckpointInvalid(
            "neither generation_config.json nor config.json has an eos_token_id"
        )
    return end


class SpeakingPart(Blip2PreTrainedModel):  # type: ignore[misc]
    """The language model and what brings the queries into its space."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        kind = AutoModelForCausalLM
        if not config.use_decoder_only_language_model:
            kind = AutoModelForSeq2SeqLM
        words = config.text_config
        self.language_projection = nn.Linear(config.qformer_config.hidden_size, words.hidden_size)
        self.language_model = kind.from_config(words)
        self.post_init()

    def get_output_embeddings(self) -> Any:
        """Those of the language model: transformers ties them."""
        return self.language_model.get_output_embeddings()


class Blip2Captioner(Blip2Images):
    """See `Captioner`.

    Attributes:
        tokenizer: the language model's.
        start_ids: what a sentence begins with in the decoder, beside a prompt.
    """

    prompt_counts = False

    def __init__(
        self, checkpoint: Checkpoint, config: Blip2Config, *, device: str, dtype: str
    ) -> None:
        super().__init__(checkpoint, config, device=device, dtype=dtype)
        self.tokenizer = load_tokenizer(
            AutoTokenizer, checkpoint, rows=config.text_config.vocab_size
        )
        words = config.text_config
        self.writes_on = bool(config.use_decoder_only_language_model)
        self.longest = _LONGEST_T5
        if self.writes_on:
            self.longest = int(words.max_position_embeddings) - config.num_query_tokens
        said = generation_defaults(checkpoint.path, PROMPT)
        self.end_id = end_token(said, config)
        self.prompt, self.says_prompt = said.prompt, said.says_prompt
        self.repetition_penalty = said.repetition_penalty
        self.no_repeat_ngram = said.no_repeat_ngram
        self.default_length = said.new_tokens or DEFAULT_LENGTH
        on_cuda = self.device.type == "cuda"
        self.captions_at_once = _CUDA_SENTENCES if on_cuda else _CPU_SENTENCES
        settings: dict[str, object] = {
            "vision": self.tower_settings(),
            "image": self.qformer_settings(),
            "text": [words.model_type, words.num_attention_heads, self.end_id],
        }
        self.spec = self.spec_of("blip2", captioner_part_of, settings)

    def image_features(self) -> list[Feature]:
        """`tokens` alone: the queries are made anew for each batch."""
        shape = (self.tokens_per_image, self.config.vision_config.hidden_size)
        return [self.form("tokens", shape, "vision")]

    @cached_property
    def speaking(self) -> SpeakingPart:
        """The language model on the device."""
        return self.load_words(SpeakingPart)

    def prompt_ids(self, prompt: str) -> list[int]:
        """OPT: the prompt's tokens, </s> first. T5: where its decoder starts."""
        if self.writes_on:
            return self._read(prompt)
        return [int(self.config.text_config.decoder_start_token_id)]

    def _read(self, prompt: str) -> list[int]:
        with TOKENIZING:
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids or [int(self.config.text_config.bos_token_id)]

    def text(self, ids: Sequence[int], prompt: str) -> str:
        """The words that were written, without blanks around them, as LAVIS has it."""
        words: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return words.strip()

    def begin(self, tokens: Tensor, prompt: str) -> tuple[Tensor, DecodingState]:
        """See `Captioner.begin`."""
        speaking = self.speaking
        states = self.queries.query_states(tokens)
        weight = speaking.language_projection.weight
        queries = speaking.language_projection(states.to(weight.dtype))  # (n, q, h)
        read = torch.tensor(self._read(prompt), device=tokens.device)
        words = speaking.language_model.get_input_embeddings()(read)
        embeds = torch.cat((queries, words.expand(len(tokens), -1, -1)), dim=1)
        if self.writes_on:
            state: OptDecodingState = OptDecodingState(speaking.language_model)
            return state.read(inputs_embeds=embeds)[:, 0], state
        start = self.prompt_ids(prompt)[0]
        encoder = speaking.language_model.get_encoder()
        t5 = T5DecodingState(
            speaking.language_model, encoder(inputs_embeds=embeds).last_hidden_state
        )
        ids = torch.full((len(tokens), 1), start, device=tokens.device)
        return t5.read(ids)[:, 0], t5


class OptDecodingState:
    """Decoding state of a decoder-only language model: its cache of keys and values."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = DynamicCache(config=model.config)
        self._sentences = 1

    def step(self, ids: Tensor, parents: Tensor | None) -> Tensor:
        """See `DecodingState.step`."""
        rows = rows_of(ids, parents, self._sentences)
        if rows is not None:
            self.choose(rows)
        self._sentences = ids.shape[1]
        logits = self.read(input_ids=ids.view(-1, 1))
        return logits.view(*ids.shape, -1)

    def keep(self, images: Tensor) -> None:
        """See `DecodingState.keep`."""
        self.choose(rows_of_images(images, self._sentences))

    def choose(self, rows: Tensor) -> None:
        """Go on with these sentences, in this order."""
        self._cache.reorder_cache(rows)

    def read(self, **new: Tensor) -> Tensor:
        """Append tokens or embeddings to each sentence: (r, 1, v) logits after the last."""
        (values,) = new.values()
        length = self._cache.get_seq_length() + values.shape[1]
        mask = torch.ones(len(values), length, dtype=torch.long, device=values.device)
        out = self._model(**new, attention_mask=mask, past_key_values=self._cache, use_cache=True)
        logits: Tensor = out.logits[:, -1:].float()
        return logits


class T5DecodingState(OptDecodingState):
    """Decoding state of an encoder-decoder language model.

    Args:
        model: transformers' `T5ForConditionalGeneration`.
        encoded: (n, l, h) what its encoder made of each image.
    """

    def __init__(self, model: Any, encoded: Tensor) -> None:
        super().__init__(model)
        config = model.config
        self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        self._seen = encoded

    def choose(self, rows: Tensor) -> None:
        """See `OptDecodingState.choose`."""
        super().choose(rows)
        self._seen = self._seen[rows]

    def read(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """See `OptDecodingState.read`."""
        out = self._model(
            decoder_input_ids=input_ids,
            encoder_outputs=BaseModelOutput(last_hidden_state=self._seen),
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1:].float()
        return logits
