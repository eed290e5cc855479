"""CLIP's two towers. Trap: a text's state is the one at its end-of-text token."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, float32
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizerFast

from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.clip import part_of
from retrieval_engine.models.clip.preprocess import read_preprocessor
from retrieval_engine.models.dual_encoder import DualEncoder
from retrieval_engine.models.loading import load_model, load_tokenizer
from retrieval_engine.records import Feature


def open_encoder(checkpoint: Checkpoint, *, device: str, dtype: str) -> "ClipEncoder":
    """Load a `CLIPModel`; see `models.open_encoder`."""
    return ClipEncoder(checkpoint, device=device, dtype=dtype)


class ClipEncoder(DualEncoder):
    """Features of `CLIPModel`: `itc` (1, d) and `pooled` (h,) of both sides, `tokens` (t, w)."""

    def __init__(self, checkpoint: Checkpoint, *, device: str, dtype: str) -> None:
        super().__init__(checkpoint, device=device, dtype=dtype)
        self.model: Any = load_model(CLIPModel, checkpoint, dtype=float32).to(self.device)
        self.in_arithmetic(self.model.vision_model.encoder)
        self.config = self.model.config
        vision, words = self.config.vision_config, self.config.text_config
        self.tokenizer = load_tokenizer(CLIPTokenizerFast, checkpoint, rows=words.vocab_size)
        self.preprocessor = read_preprocessor(checkpoint, vision.image_size)
        towers = {"vision": vision, "text": words}
        settings: dict[str, object] = {
            part: [c.num_attention_heads, c.hidden_act, c.layer_norm_eps]
            for part, c in towers.items()
        }
        self.spec = self.spec_of(
            "clip",
            part_of,
            settings | {"image": []},
            text_length=words.max_position_embeddings,
            pooling="cls of images, end of texts",
        )

    def image_features(self) -> list[Feature]:
        """`tokens` are the states after the final norm, `pooled` the first of them."""
        vision = self.config.vision_config
        tokens = ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
        return [
            self.form("itc", (1, self.config.projection_dim), "vision", "image"),
            self.form("pooled", (vision.hidden_size,), "vision"),
            self.form("tokens", tokens, "vision"),
        ]

    def text_features(self) -> list[Feature]:
        """`itc` is the projection of `pooled`."""
        width, dim = self.config.text_config.hidden_size, self.config.projection_dim
        return [self.form("itc", (1, dim), "text"), self.form("pooled", (width,), "text")]

    def vision_tower(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) -> (n, t, w)."""
        vision = self.model.vision_model
        states: Tensor = vision.post_layernorm(vision(pixel_values=pixels).last_hidden_state)
        return states

    def of_vision_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """(n, t, w) -> `pooled` (n, w) and `itc` (n, 1, d)."""
        cls = states[:, 0].float()
        return {"pooled": cls, "itc": normalize(self.model.visual_projection(cls), dim=-1)[:, None]}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, cut at the length the tower knows; the end-of-text token stays."""
        length = self.spec.text_length
        ids = self.tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
        return [list(row) for row in ids]

    def text_tower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, l) -> (n, h)."""
        states: Tensor = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return states

    def of_text_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """(n, h) -> `pooled` (n, h) and `itc` (n, 1, d)."""
        itc = normalize(self.model.text_projection(states), dim=-1)
        return {"pooled": states, "itc": itc[:, None]}
