"""BLIP's image-grounded text decoder (Li et al., ICML 2022), driven from stored vision states.

The same arithmetic as `BlipForConditionalGeneration`, on the same modules; tests compare with the
authors' token ids and with transformers. What makes it fast: an image's states are never copied
for its beams, its keys and values are formed only where that pays (`cross_attention.py`), and the prompt is
read once for an image.

Traps: a sentence begins with [DEC] (`bos_token_id`) and ends with [SEP] (`sep_token_id`, not
`eos_token_id`); without a prompt the model writes other sentences than it was trained for; the
prompt is cut off the decoded text by its length in letters, so `of` + `##hos` leaves `os`.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.attend import attend_openly, keys_values_of, split_heads
from retrieval_engine.models.blip.cross_attention import CrossAttention
from retrieval_engine.models.blip.hybrid_tower import quicken
from retrieval_engine.models.blip.plain import plain_captioning
from retrieval_engine.models.blip.settings import (
    BlipSettings,
    captioner_part_of,
    refuse_answering,
    shares_decoder,
    sharing_part_of,
)
from retrieval_engine.models.captioner import (
    DEFAULT_LENGTH,
    generation_defaults,
    rows_of,
    rows_of_images,
)
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.dual_encoder import ImageEncoder
from retrieval_engine.models.lanes import TOKENIZING
from retrieval_engine.models.lexicon import Lexicon, digest_of_words, read_lexicon
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.models.text import maps_of_words
from retrieval_engine.records import Feature

PROMPT = "a picture of "  # the authors' caption_coco.yaml
_CPU_SENTENCES, _CUDA_SENTENCES = 48, 384


class BlipCaptioner(ImageEncoder):
    """See `Captioner`.

    Args:
        checkpoint: where the files are.
        device: as in `models.open_encoder`.
        dtype: as in `models.open_encoder`.
        plain: do without transformers where that gives the same numbers, and is sooner there.

    Attributes:
        model: the model in evaluation mode, with fused attention in its tower.
        tokenizer: its WordPiece tokenizer.
    """

    prompt_counts = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        plain: bool = False,
    ) -> None:
        super().__init__(checkpoint, device=device, dtype=dtype)
        refuse_answering(checkpoint)
        found = plain_captioning(checkpoint) if plain and self.device.type == "cpu" else None
        model, self.tokenizer = found or self._through_transformers()
        self.model: Any = model.to(self.device)
        quicken(self, model)
        vision, words = model.config.vision_config, model.config.text_config
        self.end_id, self.start_id = int(words.sep_token_id), int(words.bos_token_id)
        self.longest = int(words.max_position_embeddings)
        said = generation_defaults(checkpoint.path, PROMPT)
        self.prompt, self.says_prompt = said.prompt, said.says_prompt
        self.repetition_penalty = said.repetition_penalty
        self.no_repeat_ngram = said.no_repeat_ngram
        self.default_length = DEFAULT_LENGTH
        if said.new_tokens is not None:
            whole = said.new_tokens + len(self.prompt_ids(self.prompt))
            self.default_length = min(whole, self.longest)
        self.preprocessor = read_preprocessor(checkpoint, vision.image_size)
        self.captions_at_once = _CUDA_SENTENCES if self.device.type == "cuda" else _CPU_SENTENCES
        tower = BlipSettings.of(model.config).tower
        part_of = sharing_part_of if shares_decoder(model.config) else captioner_part_of
        text = [words.num_attention_heads, words.layer_norm_eps, words.hidden_act]
        text += [self.start_id, self.end_id, *digest_of_words(checkpoint)]
        self.spec = self.spec_of("blip", part_of, {"vision": tower, "text": text})

    def _through_transformers(self) -> tuple[Any, Any]:
        from retrieval_engine.models.blip.hybrid import with_words

        # CPU autocast keeps float32 weights and sums, and is as fast as bfloat16 weights.
        stored = self.dtype if self.device.type == "cuda" else torch.float32
        return with_words(_load(self.checkpoint, stored), self.checkpoint)

    def image_features(self) -> list[Feature]:
        """`tokens`, which a retrieval encoder with the same tower shares."""
        vision = self.model.config.vision_config
        shape = (int(vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
        return [self.form("tokens", shape, "vision")]

    def vision_tower(self, pixels: Tensor) -> Tensor:
        """See `ImageEncoder.vision_tower`."""
        states: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def prompt_ids(self, prompt: str) -> list[int]:
        """[DEC] and the prompt's tokens."""
        with TOKENIZING:
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return [self.start_id, *ids[1:-1]]

    def text(self, ids: Sequence[int], prompt: str) -> str:
        """The words after the prompt; `caption[len(prompt):]` of the authors' code."""
        whole: str = self.tokenizer.decode(
            [*self.prompt_ids(prompt), *ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=True,
        )
        return whole[len(prompt) :]

    @cached_property
    def lexicon(self) -> Lexicon | None:
        """See `WordyCaptioner`."""
        rows = int(self.model.config.text_config.vocab_size)
        with TOKENIZING:
            return read_lexicon(self.checkpoint, self.tokenizer, rows)

    def relevance(
        self, tokens: Tensor, prompt: str, ids: Sequence[int]
    ) -> list[tuple[str, NDArray[np.float32]]]:
        """See `ExplainingCaptioner.relevance`."""
        begun = self.prompt_ids(prompt)
        whole = torch.tensor([*begun, *ids, self.end_id], device=self.device)
        decoder = self.model.text_decoder.float()
        found = token_relevance(decoder, tokens.to(self.device).float(), whole, len(begun))
        decoder.to(self.model.dtype)
        pieces = self.tokenizer.convert_ids_to_tokens(list(ids))
        return maps_of_words(pieces, found[:-1, 1:].cpu().numpy())  # without [SEP], without CLS

    def begin(self, tokens: Tensor, prompt: str) -> "tuple[Tensor, BlipDecodingState]":
        """See `Captioner.begin`."""
        state = BlipDecodingState(self.model.text_decoder, tokens)
        ids = torch.tensor(self.prompt_ids(prompt), device=tokens.device)
        return state.read(ids.expand(len(tokens), 1, -1))[:, 0], state

    def next_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """(n, v) logits of the token after (n, l) ids, for images with (n, t, w) states."""
        state = BlipDecodingState(self.model.text_decoder, tokens)
        return state.read(ids[:, None])[:, 0]


open_captioner = partial(BlipCaptioner, plain=True)


class BlipDecodingState:
    """Decoding state of BLIP's text decoder: keys and values of the words so far and of the images.

    Args:
        decoder: transformers' `BlipTextLMHeadModel`.
        tokens: (n, t, w) vision states.
        formed: see `CrossAttention`.
    """

    def __init__(self, decoder: Any, tokens: Tensor, *, formed: bool = False) -> None:
        self._embeddings = decoder.bert.embeddings
        self._layers = list(decoder.bert.encoder.layer)
        self._head = decoder.cls
        self._tokens = tokens
        cross = (layer.crossattention.self for layer in self._layers)
        self._images = [CrossAttention(attention, tokens, formed=formed) for attention in cross]
        self._past: list[tuple[Tensor, Tensor]] = []  # each (n b, h, l, d)
        self._sentences = 1  # b

    def step(self, ids: Tensor, parents: Tensor | None) -> Tensor:
        """See `DecodingState.step`."""
        rows = rows_of(ids, parents, self._sentences)
        if rows is not None:
            self._past = [(k[rows], v[rows]) for k, v in self._past]
        self._sentences = ids.shape[1]
        return self.read(ids[..., None])

    def keep(self, images: Tensor) -> None:
        """See `DecodingState.keep`."""
        self._tokens = self._tokens[images]
        for attention in self._images:
            attention.keep(images, self._tokens)
        rows = rows_of_images(images, self._sentences)
        self._past = [(k[rows], v[rows]) for k, v in self._past]

    def read(self, ids: Tensor) -> Tensor:
        """Append some tokens to each sentence: (n, b, m) ids -> (n, b, v) logits after the last."""
        n, b, m = ids.shape
        seen = self._past[0][0].shape[2] if self._past else 0
        x = self._embeddings(input_ids=ids.reshape(n * b, m), past_key_values_length=seen)
        past = []
        for number, layer in enumerate(self._layers):
            looked, now = self._over_text(layer.attention.self, x, number)
            past.append(now)
            x = layer.attention.output(looked, x)
            x = layer.crossattention.output(self._images[number](x, b), x)
            x = layer.output(layer.intermediate(x), x)
        self._past = past
        # On a CPU the head stays in float32: bfloat16 logits tie where sentences must differ.
        with torch.autocast(x.device.type, enabled=False):
            weight = self._head.predictions.decoder.weight
            logits: Tensor = self._head(x[:, -1].to(weight.dtype))
        return logits.float().view(n, b, -1)

    def _over_text(
        self, attention: Any, x: Tensor, number: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Causal self-attention of the new tokens, and all keys and values so far."""
        q = split_heads(attention.query(x), attention.num_attention_heads)
        k, v = keys_values_of(attention, x)
        if self._past:
            before = self._past[number]
            k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
        # Tokens are read together only where nothing was read before them.
        together = not self._past and bool(q.shape[2] > 1)
        out = scaled_dot_product_attention(q, k, v, is_causal=together)
        return out.transpose(1, 2).flatten(2), (k, v)  # (r, h, m, d) -> (r, m, w)


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    from retrieval_engine.models.blip.hybrid import load_captioning

    try:
        return load_captioning(checkpoint, dtype=dtype)
    except CheckpointInvalid as error:
        if "lacks" not in error.message:
            raise
        raise CheckpointInvalid(
            f"{checkpoint.name} writes no captions: {error.message.partition(' lacks ')[2]} missing",
            hint="use a captioning checkpoint such as Salesforce/blip-image-captioning-base, or "
            "the default, `model='vlre-photo'`",
        ) from error


def token_relevance(decoder: Any, tokens: Tensor, ids: Tensor, begun: int) -> Tensor:
    """Gradient-weighted cross-attention of each written token.

    For a token: the cross-attention where it was chosen, times the gradient of its log-probability
    with respect to that attention, positive part, mean over heads, summed over layers; the rule of
    Chefer, Gur and Wolf, "Generic Attention-model Explainability" (ICCV 2021). Attention alone
    also shows where a word did not care.

    Args:
        decoder: transformers' `BlipTextLMHeadModel`, float32.
        tokens: (1, t, w) float32 vision states.
        ids: (l,) the sentence, prompt and end token included.
        begun: number of its tokens that are the prompt.

    Returns:
        (l - begun, t) float32, at least 0.
    """
    with torch.enable_grad():
        maps: list[Tensor] = []
        x = decoder.bert.embeddings(input_ids=ids[None, :-1])
        length = x.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for layer in decoder.bert.encoder.layer:
            own = layer.attention.self
            mixed, _ = attend_openly(own, x, *keys_values_of(own, x), past)
            x = layer.attention.output(mixed, x)
            cross = layer.crossattention.self
            mixed, seen = attend_openly(cross, x, *keys_values_of(cross, tokens))
            maps.append(seen)
            x = layer.crossattention.output(mixed, x)
            x = layer.output(layer.intermediate(x), x)
        chosen = ids[begun:]
        scores = decoder.cls(x)[0, begun - 1 :].log_softmax(-1)
        written = scores.gather(-1, chosen[:, None])[:, 0]
        found = []
        for number in range(len(chosen)):
            gradients = torch.autograd.grad(written[number], maps, retain_graph=True)
            place = begun - 1 + number
            useful = [
                (a[0, :, place] * g[0, :, place]).clamp(min=0).mean(0)
                for a, g in zip(maps, gradients, strict=True)
            ]
            found.append(torch.stack(useful).sum(0))
    return torch.stack(found).detach()
