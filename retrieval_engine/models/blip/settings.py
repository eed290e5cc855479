"""What a BLIP checkpoint's files say about its features, told without building the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import text
from retrieval_engine.models.checkpoint import Checkpoint, tensor_names, weight_digests
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Json, Modality

if TYPE_CHECKING:
    from torch import Tensor

MAX_WORDS = 30  # BLIP's flickr30k and coco retrieval sets
MAX_TOKENS = 35  # train_retrieval.py

Arithmetic = tuple[int, float, str]


def part_of(name: str) -> str | None:
    """Part of the encoder that a tensor decides; the caption decoder decides none."""
    if name.startswith("vision_model."):
        return "vision"
    if name.startswith("vision_proj."):
        return "image"
    if name.startswith("itm_head.") or ".crossattention." in name:
        return None if name.startswith("text_decoder.") else "itm"
    return "text" if name.startswith(("text_encoder.", "text_proj.")) else None


def captioner_part_of(name: str) -> str | None:
    """Part of the captioner that a tensor decides; retrieval heads decide none."""
    parts = {"vision_model.": "vision", "text_decoder.": "text"}
    return next((part for start, part in parts.items() if name.startswith(start)), None)


def refuse_answering(checkpoint: Checkpoint) -> None:
    """Refuse a model for question answering where a captioner is wanted.

    Its decoder has a captioner's names and shapes, but reads the states of a question.

    Raises:
        CheckpointInvalid: the checkpoint has a text encoder, a decoder, and no retrieval heads.
    """
    parts = {name.partition(".")[0] for name in tensor_names(checkpoint.path)}
    if {"text_encoder", "text_decoder"} <= parts and not {"vision_proj", "itm_head"} & parts:
        raise CheckpointInvalid(
            f"{checkpoint.name} answers questions: its decoder reads the states of a question, not "
            "of an image, and writes no captions",
            hint="use a captioning checkpoint such as Salesforce/blip-image-captioning-base",
        )


def sharing_part_of(name: str) -> str | None:
    """`captioner_part_of` where the decoder takes what it shares from the encoder."""
    return "text" if decoder_twin(name) else captioner_part_of(name)


def decoder_twin(name: str) -> str | None:
    """The decoder's name of a tensor of the text encoder that BLIP's decoder shares with it.

    Embeddings, cross-attention and feed-forward layers; the self-attention is the decoder's own
    (Li et al. 2022, section 3.2).
    """
    start, _, rest = name.partition(".")
    if start != "text_encoder":
        return None
    parts = rest.split(".")
    shared = parts[0] == "embeddings" or parts[3:4] in (
        ["crossattention"],
        ["intermediate"],
        ["output"],
    )
    return f"text_decoder.bert.{rest}" if shared else None


def decoder_from_encoder(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors of a checkpoint, with the encoder's under the decoder's names that are not there."""
    filled = dict(tensors)
    for name, tensor in tensors.items():
        if twin := decoder_twin(name):
            filled.setdefault(twin, tensor)
    return filled


def stated(part: Any, name: str) -> Any:
    """A value of a part of a configuration, transformers' object or JSON; None where it has none."""
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def shares_decoder(config: Any) -> bool:
    """Whether a checkpoint holds once what encoder and decoder share."""
    return bool(stated(stated(config, "text_config"), "decoder_shares_encoder"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchStart:
    """How a match logit starts at the cosine of ITC; see `cross_encoder.StartedCrossEncoder`.

    Attributes:
        scale: of the cosine.
        offset: taken off.
        cls_token_id: first token of a text that is read alone.
        likelihood: weight of how likely the decoder would write the text, by which the images of a
            text are ordered, too; see `cross_encoder.TellingCrossEncoder`. 0 leaves it out.
        usual: mean log-likelihood of the pieces of a true text, which is taken off before.
    """

    scale: Any
    offset: Any
    cls_token_id: int
    likelihood: float = 0.0
    usual: float = 0.0

    @classmethod
    def of(cls, config: Any) -> "MatchStart | None":
        """That of a configuration, transformers' object or JSON; None where it has none.

        Raises:
            CheckpointInvalid: it holds something else.
        """
        said = stated(config, "match_start")
        if not said:
            return None
        names = [f.name for f in fields(cls)]
        if not isinstance(said, Mapping) or not set(names[:3]) <= set(said) <= set(names):
            raise CheckpointInvalid(
                f"match_start in config.json is {said!r}", hint=f"it holds {', '.join(names)}"
            )
        for name, value in said.items():
            if not isinstance(value, int if name == "cls_token_id" else int | float):
                raise CheckpointInvalid(
                    f"match_start.{name} in config.json is {value!r}", hint="it is a number"
                )
        return cls(**said)

    def to_json(self) -> dict[str, Json]:
        """As it stands in a configuration."""
        told = set() if self.likelihood else {"likelihood", "usual"}
        return {name: value for name, value in asdict(self).items() if name not in told}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipSettings:
    """The part of a BLIP's config.json that shapes features.

    Attributes:
        dim: of the space that images and texts share.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        vision_width: of the vision tower's states.
        text_width: of the text tower's states.
        vision: heads, LayerNorm epsilon and activation of the vision tower.
        text: the same of the text tower.
        backbone: name of what stands in the place of the patch projection, with the stages it
            joins (`efficientnet-lite2+4+5+6`), or empty.
        pooling: which state of a text is projected: `cls`, or `mean` over its tokens.
        match: where match logits start, or None.
    """

    dim: int
    image_size: int
    patch_size: int
    vision_width: int
    text_width: int
    vision: Arithmetic
    text: Arithmetic
    backbone: str = ""
    pooling: str = "cls"
    match: MatchStart | None = None

    @classmethod
    def of(cls, config: Any) -> "BlipSettings":
        """Those of a transformers `BlipConfig`."""
        found = cls.stated(config.to_dict())
        assert found is not None  # transformers leaves nothing out
        return found

    @classmethod
    def stated(cls, config: Mapping[str, Json]) -> "BlipSettings | None":
        """Those that a config.json states; None where it leaves one to transformers' defaults."""

        def arithmetic(side: Any) -> Arithmetic:
            return side["num_attention_heads"], side["layer_norm_eps"], side["hidden_act"]

        try:
            vision: Any = config["vision_config"]
            words: Any = config["text_config"]
            return cls(
                dim=int(config["image_text_hidden_size"]),  # type: ignore[arg-type]
                image_size=int(vision["image_size"]),
                patch_size=int(vision["patch_size"]),
                vision_width=int(vision["hidden_size"]),
                text_width=int(words["hidden_size"]),
                vision=arithmetic(vision),
                text=arithmetic(words),
                backbone=_backbone(vision),
                pooling=str(words.get("pooling") or "cls"),
                match=MatchStart.of(config),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def tower(self) -> list[Json]:
        """What besides the weights decides the vision tower's states."""
        return [*self.vision, self.backbone] if self.backbone else [*self.vision]

    @property
    def tokens(self) -> int:
        """Vision tokens of an image, the CLS token included."""
        return int(self.image_size // self.patch_size) ** 2 + 1

    def _part_of(self, name: str) -> str | None:
        """`part_of`; the decoder decides match logits too where they ask for its likelihood."""
        told = self.match is not None and self.match.likelihood and name.startswith("text_decoder.")
        return "itm" if told else part_of(name)

    def spec(
        self,
        checkpoint: Checkpoint,
        preprocessor: ImagePreprocessor,
        *,
        vocabulary: str,
        dtype: object,
    ) -> EncoderSpec:
        """The spec of an encoder made from a checkpoint.

        Args:
            checkpoint: its weights are read and hashed.
            preprocessor: what makes its pixels.
            vocabulary: digest of its tokenizer.
            dtype: name of the towers' arithmetic, or its torch dtype.

        Raises:
            CheckpointInvalid: a weight file is damaged.
        """
        words = [*self.text, self.pooling] if self.pooling != "cls" else [*self.text]
        configs = {"vision": self.tower, "image": [], "text": words, "itm": [*self.text]}
        if self.match:
            configs["itm"] = [*self.text, self.match.to_json()]
        return EncoderSpec(
            family="blip",
            checkpoint=checkpoint.name,
            revision=checkpoint.revision,
            weights=weight_digests(checkpoint.path, self._part_of, configs),
            vocabulary=vocabulary,
            image_size=self.image_size,
            preprocessing=preprocessor.name,
            text_normaliser=f"{text.VERSION}({MAX_WORDS})",
            text_length=MAX_TOKENS,
            dtype=str(dtype).removeprefix("torch."),
            pooling="cls",  # of images; that of texts is in their weights' digest
        )

    def features(self, spec: EncoderSpec, modality: Modality) -> dict[str, Feature]:
        """The features of an encoder with this spec; see `Encoder.features`."""
        if modality is Modality.IMAGES:
            tower, head = spec.part("vision"), spec.part("vision", "image")
            forms = {
                "itc": ((1, self.dim), "float32", head),
                "pooled": ((self.vision_width,), "float32", tower),
                "tokens": ((self.tokens, self.vision_width), "float32", tower),
            }
        else:
            side = spec.part("text")
            forms = {
                "itc": ((1, self.dim), "float32", side),
                "pooled": ((self.text_width,), "float32", side),
                "token_ids": ((MAX_TOKENS,), "int32", side),
                "token_mask": ((MAX_TOKENS,), "uint8", side),
            }
        return {
            name: Feature(name=name, shape=shape, dtype=dtype, fingerprint=fingerprint)
            for name, (shape, dtype, fingerprint) in forms.items()
        }


def _backbone(vision: Any) -> str:
    asked = stated(vision, "backbone")
    if not asked:
        return ""
    stages = stated(asked, "stages") or []
    return "+".join([str(stated(asked, "name") or ""), *map(str, stages)])
