"""SigLIP's two towers. Its head of attention gives the one state of an image that is compared."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, float32
from torch.nn.functional import normalize
from transformers import SiglipModel

from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.dual_encoder import DualEncoder
from retrieval_engine.models.loading import load_model
from retrieval_engine.models.siglip import part_of
from retrieval_engine.models.siglip.preprocess import siglip_preprocessor
from retrieval_engine.models.siglip.texts import NORMALISER, filled, open_tokenizer
from retrieval_engine.records import Feature


def open_encoder(checkpoint: Checkpoint, *, device: str, dtype: str) -> "SiglipEncoder":
    """Load a `SiglipModel`; see `models.open_encoder`."""
    return SiglipEncoder(checkpoint, device=device, dtype=dtype)


class SiglipEncoder(DualEncoder):
    """Features of `SiglipModel`: `itc` (1, d) and `pooled` (d,) of both sides, `tokens` (t, w).

    `itc` is `pooled` at length one: both towers end in the common space.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str, dtype: str) -> None:
        super().__init__(checkpoint, device=device, dtype=dtype)
        self.model: Any = load_model(SiglipModel, checkpoint, dtype=float32).to(self.device)
        self.in_arithmetic(self.model.vision_model.encoder)
        vision, words = self.model.config.vision_config, self.model.config.text_config
        self.vision, self.words = vision, words
        self.tokenizer = open_tokenizer(checkpoint, rows=words.vocab_size)
        self.preprocessor = siglip_preprocessor(checkpoint, vision.image_size)
        settings: dict[str, object] = {
            part: [c.num_attention_heads, c.hidden_act, c.layer_norm_eps]
            for part, c in (("vision", vision), ("image", vision), ("text", words))
        }
        self.spec = self.spec_of(
            "siglip",
            part_of,
            settings,
            text_normaliser=NORMALISER,
            text_length=words.max_position_embeddings,
            pooling="attention head of images, last place of texts",
        )

    def image_features(self) -> list[Feature]:
        """`tokens` are the states after the final norm; there is no CLS among them."""
        tokens = ((self.vision.image_size // self.vision.patch_size) ** 2, self.vision.hidden_size)
        return [
            self.form("itc", (1, self.vision.hidden_size), "vision", "image"),
            self.form("pooled", (self.vision.hidden_size,), "vision", "image"),
            self.form("tokens", tokens, "vision"),
        ]

    def text_features(self) -> list[Feature]:
        """`itc` is `pooled` at length one."""
        dim = self.words.projection_size
        return [self.form("itc", (1, dim), "text"), self.form("pooled", (dim,), "text")]

    def vision_tower(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) -> (n, t, w)."""
        states: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def of_vision_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """(n, t, w) -> `pooled` (n, d) and `itc` (n, 1, d)."""
        pooled = self.model.vision_model.head(states.float())
        return {"pooled": pooled, "itc": normalize(pooled, dim=-1)[:, None]}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, all of the full length."""
        return filled(self.tokenizer, texts, self.spec.text_length)

    def text_tower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, l) -> (n, d); the mask is of ones, for filling is read as words are."""
        states: Tensor = self.model.text_model(input_ids=ids).pooler_output
        return states

    def of_text_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """(n, d) -> `pooled` (n, d) and `itc` (n, 1, d)."""
        return {"pooled": states, "itc": normalize(states, dim=-1)[:, None]}
