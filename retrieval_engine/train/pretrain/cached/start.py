"""What a run begins with: the backbone, the words and layers of a BERT, and a first guess.

The first guess is closed: a ridge regression from the mean state of each picture to the mean BERT
state of its captions, and the principal components of those as the shared space, half whitened:
what many pictures share tells them apart least.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipTextConfig, BlipVisionConfig

from retrieval_engine.errors import UsageError
from retrieval_engine.models.blip.backbone import EfficientNetLite, folded
from retrieval_engine.models.checkpoint import read_config
from retrieval_engine.models.pickled import load_pickled
from retrieval_engine.train.pretrain.cached.config import CachedConfig
from retrieval_engine.train.pretrain.tokenizer import DECODE, ENCODE, load_tokenizer

_LONGEST = 64
_EPS_VISION = 1e-6
_RIDGE = 2.0  # of 1,280 standardised channels and more, most of them of little use
_WHITEN, _FAINTEST = 0.5, 0.01
_HEAD_WIDTH = 64


def open_backbone(config: CachedConfig) -> tuple[EfficientNetLite, NDArray[np.float32]]:
    """The backbone with its published weights, and the (k, c) rows of its classifier.

    Raises:
        CheckpointInvalid: the file is damaged, or no PyTorch checkpoint.
        UsageError: there is no such file, or it is not of this backbone.
    """
    path = Path(config.backbone_weights)
    if not path.is_file():
        raise UsageError(f"`backbone_weights` {path} is no file")
    published = load_pickled(path)
    try:
        backbone = EfficientNetLite(config.backbone, config.stages)
        backbone.load_state_dict(folded(published))
        rows: NDArray[np.float32] = published["_fc.weight"].float().numpy()
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"`backbone_weights` {config.backbone_weights} are not those of {config.backbone}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone.eval().requires_grad_(False), rows


def check_text_init(config: CachedConfig) -> None:
    """Refuse a directory that is no BERT before any picture is encoded.

    Raises:
        UsageError: it lacks its tokenizer, its shape or its weights.
    """
    blip_config(config, load_tokenizer(config.text_init))
    bert_weights(config, np.zeros(1, dtype=np.int64))


def pruned_tokenizer(
    config: CachedConfig, captions: Sequence[str]
) -> tuple[BertTokenizer, NDArray[np.int64]]:
    """A BERT's tokenizer without the pieces that are hardly ever needed.

    Args:
        config: for the directory, and for how many of the first pieces stay.
        captions: cleaned texts; whatever piece they use stays.

    Returns:
        The tokenizer, [DEC] and [ENC] at its end, and the BERT's ids of its pieces; [DEC] and
        [ENC] begin as [CLS].
    """
    whole = load_tokenizer(config.text_init)
    ids = whole(list(captions), add_special_tokens=False)["input_ids"]
    used = {i for row in ids for i in row}
    kept = []
    for piece, number in sorted(whole.get_vocab().items(), key=lambda pair: pair[1]):
        plain = piece.removeprefix("##")
        letters = plain.isascii() and (plain.isalnum() or len(plain) == 1)
        known = number < config.vocabulary and letters
        if known or number in used or piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
            kept.append((piece, number))
    tokenizer = BertTokenizer(vocab={piece: i for i, (piece, _) in enumerate(kept)})
    tokenizer.add_special_tokens({"bos_token": DECODE, "additional_special_tokens": [ENCODE]})
    first = int(whole.convert_tokens_to_ids("[CLS]"))
    return tokenizer, np.array([number for _, number in kept] + [first, first])


def blip_config(config: CachedConfig, tokenizer: BertTokenizer) -> BlipConfig:
    """The configuration of the BLIP that is trained; the text side has the BERT's shape.

    Raises:
        UsageError: the BERT's config.json lacks its shape.
    """
    bert: Any = read_config(Path(config.text_init))
    try:
        width, layers = int(bert["hidden_size"]), int(bert["num_hidden_layers"])
        heads, inner = int(bert["num_attention_heads"]), int(bert["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"`text_init` {config.text_init} is no BERT: {error}") from error
    sep = int(tokenizer.convert_tokens_to_ids("[SEP]"))
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        encoder_hidden_size=width,
        intermediate_size=inner,
        projection_dim=config.embed_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_LONGEST,
        layer_norm_eps=float(bert.get("layer_norm_eps", 1e-12)),
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        bos_token_id=int(tokenizer.convert_tokens_to_ids(DECODE)),
        eos_token_id=sep,
        sep_token_id=sep,
        pad_token_id=0,
        pooling=config.text_pooling,
        decoder_shares_encoder=True,
    )
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=config.embed_dim,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        image_size=config.image_size,
        patch_size=config.image_size // config.grid,
        layer_norm_eps=_EPS_VISION,
        initializer_range=0.02,
        backbone={"name": config.backbone, "stages": [*config.stages]},
    )
    return BlipConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=config.embed_dim,
        image_text_hidden_size=config.embed_dim,
    )


def bert_weights(config: CachedConfig, kept: NDArray[np.int64]) -> dict[str, Tensor]:
    """A BERT's weights under the names of BLIP's text encoder.

    BLIP has no token types: the first one's vector is added to every position.

    Raises:
        UsageError: the directory has no readable weights of a BERT.
    """
    path = Path(config.text_init) / "model.safetensors"
    try:
        bert = {k.removeprefix("bert."): v.float() for k, v in load_file(path).items()}
        positions = bert["embeddings.position_embeddings.weight"][:_LONGEST]
        weights = {
            "embeddings.word_embeddings.weight": bert["embeddings.word_embeddings.weight"][
                torch.from_numpy(kept)
            ],
            "embeddings.position_embeddings.weight": positions
            + bert["embeddings.token_type_embeddings.weight"][0],
        }
    except (OSError, KeyError, SafetensorError) as error:
        raise UsageError(f"`text_init` {path} holds no BERT: {error}") from error
    names = [n for n in bert if n.startswith(("encoder.layer.", "embeddings.LayerNorm."))]
    return weights | {name: bert[name] for name in names}


def first_guess(
    means: NDArray[np.float32], texts: NDArray[np.float32], dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Images in the text states' space by ridge regression, and a space that both share.

    Args:
        means: (n, c) standardised mean state of each picture.
        texts: (n, w) mean BERT state of each picture's captions.
        dim: of the shared space.

    Returns:
        (w, c) map of a picture's mean state, scaled to states of spread 1; (dim, w) principal
        components of the texts, each divided by the root of its spread, of length 1 on average;
        (w,) their mean.
    """
    middle = texts.mean(0)
    gram = means.T @ means + _RIDGE * len(means) * np.eye(means.shape[1], dtype=np.float32)
    mapping = np.linalg.solve(gram, means.T @ (texts - middle))
    mapping /= (means @ mapping).std()
    _, spread, components = np.linalg.svd(texts - middle, full_matrices=False)
    whitened = components[:dim] * np.maximum(spread / spread[0], _FAINTEST)[:dim, None] ** -_WHITEN
    whitened /= np.sqrt((whitened**2).sum(1).mean())
    return mapping.T.astype(np.float32), whitened.astype(np.float32), middle
