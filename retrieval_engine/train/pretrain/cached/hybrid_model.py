"""The network that is trained on standardised backbone states."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, normalize
from transformers import BlipConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from retrieval_engine.models import text
from retrieval_engine.models.attend import attend
from retrieval_engine.models.blip.cross_encoder import StartedCrossEncoder
from retrieval_engine.models.blip.hybrid import HybridImageTextRetrieval
from retrieval_engine.models.blip.likelihood import NEVER, decoder_states
from retrieval_engine.models.blip.settings import MatchStart
from retrieval_engine.models.matcher import KeysValues

_TEMPERATURE = 0.05
_MATCH_SCALE, _MATCH_OFFSET = 15.0, 6.0  # where match logits start on the cosine of ITC
_GROUPS = 4
_IMAGE_SIDE = ("retrieval.vision_", "retrieval.text_proj", "temperature")
_FUSES = ("crossattention", "itm_head", "match_", "text_decoder.")
_DECODER_LAYERS = "text_decoder.bert.encoder."


class CachedModel(nn.Module):
    """A BLIP without its backbone, in training.

    The decoder shares the encoder's embeddings, cross-attention and feed-forward layers and has
    self-attention of its own (BLIP, Li et al. 2022, section 3.2), so that an image's keys and
    values are formed once for matching and for captions.

    Args:
        config: of the BLIP.
        bert: weights of the text encoder; cross-attention is not among them.
        said: ids of the pieces that the decoder may write; the others are never learned.
        drop: part of the states' channels that are dropped in training.
        frozen_layers: of the text encoder, from below, whose own weights stay as they are; there
            is no dropout in them, and none in the embeddings.
        cls: id of [CLS].

    Attributes:
        likelihood: what is written of the decoder's part in ordering images; see `second_opinion`.
        usual: the same.
    """

    def __init__(
        self,
        config: BlipConfig,
        bert: dict[str, Tensor],
        said: Tensor,
        *,
        drop: float,
        frozen_layers: int,
        cls: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.retrieval = HybridImageTextRetrieval(config)
        del self.retrieval.vision_model.backbone
        _spread(self.retrieval, 0.02)
        encoder = self.retrieval.text_encoder
        encoder.load_state_dict(bert, strict=False)
        for layer in encoder.encoder.layer:
            # What looks at words knows more of looking at an image than random matrices do.
            layer.crossattention.load_state_dict(layer.attention.state_dict())
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.text_decoder.bert.embeddings = encoder.embeddings
        layers = self.text_decoder.bert.encoder.layer
        for ours, theirs in zip(layers, encoder.encoder.layer, strict=True):
            ours.attention = copy.deepcopy(theirs.attention)
            ours.crossattention = theirs.crossattention
            ours.intermediate, ours.output = theirs.intermediate, theirs.output
        head = self.text_decoder.cls.predictions
        head.decoder.weight = encoder.embeddings.word_embeddings.weight
        head.decoder.bias = head.bias
        with torch.no_grad():
            head.bias.fill_(NEVER)[said] = 0.0
            nn.init.eye_(head.transform.dense.weight).add_(
                0.02 * torch.randn_like(head.transform.dense.weight)
            )
        self.temperature = nn.Parameter(torch.tensor(_TEMPERATURE))
        self.match_scale = nn.Parameter(torch.tensor(_MATCH_SCALE))
        self.match_offset = nn.Parameter(torch.tensor(_MATCH_OFFSET))
        start = MatchStart(scale=self.match_scale, offset=self.match_offset, cls_token_id=cls)
        self.cross = StartedCrossEncoder(self.retrieval, start, config.text_config.pooling)
        self.likelihood = self.usual = 0.0
        self.said: Tensor
        self.register_buffer("said", said, persistent=False)
        self._drop, self._frozen, self._cls = drop, frozen_layers, cls
        still = [encoder.embeddings]
        for layer in encoder.encoder.layer[:frozen_layers]:
            still += [layer.attention, layer.intermediate, layer.output]
        for part in still:
            part.requires_grad_(part is encoder.embeddings)  # the decoder's head learns them
            for module in part.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0

    def see(self, states: Tensor, places: Tensor | None = None) -> Tensor:
        """Tokens of pictures: (b, p, c) standardised states -> (b, 1 + p, w)."""
        found: Tensor = self.retrieval.vision_model.see(
            dropout(states, self._drop, self.training), places
        )
        return found

    def embed_images(self, tokens: Tensor) -> Tensor:
        """ITC vectors of pictures: (b, 1 + p, w) -> (b, d) float32, unit length."""
        return normalize(self.retrieval.vision_proj(tokens[:, 0]).float(), dim=-1)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ITC vectors of captions: (t, l) -> (t, d) float32, unit length."""
        states = self.text_states(ids, mask)
        return normalize(self.retrieval.text_proj(states).float(), dim=-1)

    def text_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(t, w) pooled states of captions, on a CPU run in groups of about equal length."""
        if ids.is_cuda:  # one pass is sooner done than four, each of which is waited for
            return text.pooled(self._read(ids, mask), mask, self.config.text_config.pooling)
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.chunk(_GROUPS):
            longest = int(lengths[rows].max())
            kept = mask[rows, :longest]
            states = self._read(ids[rows, :longest], kept)
            parts.append(text.pooled(states, kept, self.config.text_config.pooling))
        return torch.cat(parts)[order.argsort()]

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(t, l, w) states of texts alone; no gradient goes below the first layer that learns."""
        encoder = self.retrieval.text_encoder
        keep = mask[:, None, None].bool()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            x = encoder.embeddings(input_ids=ids)
        for number, layer in enumerate(encoder.encoder.layer):
            learns = torch.is_grad_enabled() and number >= self._frozen
            with torch.set_grad_enabled(learns):
                x = layer.attention.output(attend(layer.attention.self, x, x, keep), x)
                x = layer.output(layer.intermediate(x), x)
        states: Tensor = x
        return states

    def caption_logits(self, seen: KeysValues, ids: Tensor) -> Tensor:
        """Logits of each next token among those that may be written.

        Args:
            seen: keys and values of i images, by layer.
            ids: (i, n, l) captions that begin with [DEC].

        Returns:
            (i n, l, s).
        """
        layers = len(self.text_decoder.bert.encoder.layer)
        x = decoder_states(self.text_decoder, seen[:layers], ids)
        head = self.text_decoder.cls.predictions
        weight = head.decoder.weight[self.said]
        logits: Tensor = linear(head.transform(x), weight, head.bias[self.said])
        return logits

    def match_start(self) -> MatchStart:
        """Where match logits start, as the configuration says it."""
        return MatchStart(
            scale=round(float(self.match_scale.detach()), 4),
            offset=round(float(self.match_offset.detach()), 4),
            cls_token_id=self._cls,
            likelihood=self.likelihood,
            usual=self.usual,
        )

    @torch.no_grad()
    def begin_with(self, mapping: Tensor, components: Tensor, middle: Tensor) -> None:
        """Begin the image side and both projections with a closed solution, see `first_guess`."""
        retrieval = self.retrieval
        retrieval.vision_model.mean_projection.weight.copy_(mapping)
        # Each place says, in the BERT's space, what it shows: so cross-attention can begin.
        retrieval.vision_model.embeddings.patch_embedding.weight.add_(mapping)
        retrieval.vision_model.mean_projection.bias.zero_()
        dim = len(components)
        for projection in (retrieval.vision_proj, retrieval.text_proj):
            projection.weight[:dim].copy_(components)
            projection.bias.zero_()
        retrieval.text_proj.bias[:dim].copy_(-components @ middle)

    def freeze_retrieval(self) -> None:
        """From now on vectors stay: cross-attention, matching head and decoder learn alone."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(_fuses(name))

    def groups(self, lrs: Sequence[float], decay: float) -> list[dict[str, object]]:
        """Parameters by peak step.

        What the BERT had, the image side, what fuses both, and the decoder's self-attention, which
        looked both ways and has much to learn before it only looks back.

        Args:
            lrs: of the four, in this order.
            decay: of matrices; vectors and embeddings have none.
        """
        sides: list[list[nn.Parameter]] = [[], [], [], []]
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith(_IMAGE_SIDE):
                sides[1].append(parameter)
            elif not _fuses(name):
                sides[0].append(parameter)
            else:
                sides[3 if name.startswith(_DECODER_LAYERS) else 2].append(parameter)
        words = self.retrieval.text_encoder.embeddings.word_embeddings.weight
        found: list[dict[str, object]] = []
        for side, lr in zip(sides, lrs, strict=True):
            plain = [p for p in side if p.ndim != 2 or p is words]
            matrices = [p for p in side if p.ndim == 2 and p is not words]
            for parameters, weight_decay in ((matrices, decay), (plain, 0.0)):
                found.append(
                    {
                        "params": parameters,
                        "lr": lr,
                        "peak": lr,
                        "weight_decay": weight_decay,
                    }
                )
        return found


def _fuses(name: str) -> bool:
    """Whether a parameter is of what reads both sides, and shapes no vector of either."""
    return any(part in name for part in _FUSES)


def _spread(model: nn.Module, std: float) -> None:
    """Random matrices of a usable size, where transformers' own would be next to nothing."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
