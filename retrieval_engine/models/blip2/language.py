"""BLIP-2 with a language model (OPT, Flan-T5): features for heads, where there is no ITC.

The image is the mean of the Q-Former's query states, the text the mean of the language model's
last hidden states over its tokens. The two live in spaces that have nothing to do with each other:
cosines between them mean nothing until a projection head is trained.
"""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor
from transformers import AutoTokenizer, Blip2Config

from retrieval_engine.models.blip2.image_side import Blip2Images
from retrieval_engine.models.blip2.parts import LanguagePart
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.dual_encoder import DualEncoder
from retrieval_engine.models.loading import load_tokenizer
from retrieval_engine.records import Feature

MAX_TOKENS = 64  # no published figure depends on it; captions are shorter
_TEXT = ("language_model.shared.", "language_model.encoder.", "language_model.model.")


def part_of(name: str) -> str | None:
    """Part of the encoder that a tensor decides; the T5 decoder and output layers decide none."""
    if name.startswith("vision_model."):
        return "vision"
    if name.startswith(("query_tokens", "qformer.")):
        return "image"
    return "text" if name.startswith(_TEXT) else None


class Blip2LanguageEncoder(Blip2Images, DualEncoder):
    """Features of `Blip2ForConditionalGeneration`: `pooled` of both sides, `tokens`, `queries`.

    Attributes:
        tokenizer: the language model's.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: Blip2Config, *, device: str, dtype: str
    ) -> None:
        super().__init__(checkpoint, config, device=device, dtype=dtype)
        self.tokenizer = load_tokenizer(
            AutoTokenizer, checkpoint, rows=config.text_config.vocab_size
        )
        words = config.text_config
        settings: dict[str, object] = {
            "vision": self.tower_settings(),
            "image": self.qformer_settings(),
            "shared": [],
            "text": [words.model_type, words.num_attention_heads],
        }
        self.spec = self.spec_of(
            "blip2",
            part_of,
            settings,
            text_normaliser="strip1",
            text_length=MAX_TOKENS,
            pooling="mean",
        )

    @cached_property
    def language(self) -> LanguagePart:
        """The language model's text side, on the device."""
        return self.load_words(LanguagePart)

    def text_features(self) -> list[Feature]:
        """Those of captions."""
        return [self.form("pooled", (self.config.text_config.hidden_size,), "text")]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as the language model reads them, at most 64."""
        ids: list[list[int]] = self.tokenizer(
            [text.strip() for text in texts],
            truncation=True,
            max_length=MAX_TOKENS,
            return_attention_mask=False,
        )["input_ids"]
        return ids

    def text_tower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, h) means over the tokens."""
        states = self.language(ids, mask).float()
        total = (states * mask[..., None]).sum(dim=1)
        means: Tensor = total / mask.sum(dim=1, keepdim=True)
        return means

    def of_text_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """`pooled` is the mean of the states."""
        return {"pooled": states}

    def hint(self, unknown: Sequence[str]) -> str:
        """Where the features are that this kind of checkpoint lacks."""
        return (
            "a language-model checkpoint has no contrastive head: use "
            "Salesforce/blip2-itm-vit-g, or train a projection head on pooled"
        )
