"""What is done to the scores of the next word before one is chosen.

The same arithmetic and order as transformers' logits processors, but for the lexicon, which
transformers has none of; a test compares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_engine.errors import UsageError
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.models.lexicon import WORD_COUNTS, Lexicon, lexicon_of

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRules:
    """Rules for which token may come next.

    Attributes:
        end_id: token that ends a sentence.
        min_length: no end before the sentence has so many tokens.
        repetition_penalty: divides positive and multiplies negative scores of tokens that were
            written already.
        no_repeat_ngram: forbids what would repeat so many tokens; 0 forbids nothing.
        lexicon: forbids what makes none of its words.
    """

    end_id: int
    min_length: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    lexicon: Lexicon | None = None

    def __call__(self, sentences: Tensor, scores: Tensor) -> Tensor:
        """Apply the rules to the scores of the next token.

        Args:
            sentences: (n, b, l) tokens so far, those of the prompt included.
            scores: (n, b, v) logits or log-probabilities.

        Returns:
            (n, b, v), changed in place.
        """
        if self.repetition_penalty != 1.0 and sentences.shape[-1]:
            seen = scores.gather(-1, sentences)
            worse = torch.where(
                seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty
            )
            scores.scatter_(-1, sentences, worse)
        if self.no_repeat_ngram and sentences.shape[-1] >= self.no_repeat_ngram:
            self._forbid_repeats(sentences, scores)
        if sentences.shape[-1] < self.min_length:
            scores[..., self.end_id] = _NEVER
        if self.lexicon is not None:
            self.lexicon.keep_to_words(sentences, scores)
        return scores

    def _forbid_repeats(self, sentences: Tensor, scores: Tensor) -> None:
        size = self.no_repeat_ngram
        grams = sentences.unfold(-1, size, 1)  # (n, b, l - size + 1, size)
        last = sentences[..., sentences.shape[-1] - size + 1 :]
        again = (grams[..., :-1] == last[..., None, :]).all(-1)
        banned = torch.zeros_like(scores, dtype=torch.int32)
        banned.scatter_add_(-1, grams[..., -1], again.int())
        scores.masked_fill_(banned > 0, _NEVER)


def adjustment(captioner: Captioner, share: float) -> Tensor | None:
    """What `logit_adjustment` takes from the logits of every step; None is nothing.

    Returns:
        (v,) float32 on the captioner's device.

    Raises:
        UsageError: the checkpoint does not tell how often it read its words.
    """
    if not share:
        return None
    lexicon = lexicon_of(captioner)
    if lexicon is None:
        raise UsageError(
            f"`logit_adjustment` {share} needs {WORD_COUNTS}, which "
            f"{captioner.spec.checkpoint} does not have",
            hint="leave it out, or take a model that was pretrained here",
        )
    return share * torch.from_numpy(lexicon.log_frequencies).to(captioner.device)


def draw(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Draw the next tokens at random.

    Args:
        logits: (n, b, v).
        uniform: (n, b) numbers in [0, 1) that decide; equal numbers draw equal words.
        temperature: above 0; below 1 prefers likely words; or (b,), one for each sentence.
        top_k: among so many of the likeliest only.
        top_p: among the fewest likeliest that make up this probability; at least one.

    Returns:
        (n, b) tokens.
    """
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None].to(logits)
    warm = (logits / temperature).double()
    if top_k and top_k < warm.shape[-1]:
        least = warm.topk(top_k, dim=-1).values[..., -1:]
        warm = warm.masked_fill(warm < least, _NEVER)
    probabilities = warm.softmax(-1)
    if top_p is not None:
        ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.masked_fill(beyond.scatter(-1, ids, beyond), 0.0)
    # In the vocabulary's order, so that rounding, which can swap two words of nearly equal
    # probability in any other order, hardly ever changes what is drawn.
    total = probabilities.cumsum(-1)
    wanted = uniform[..., None].to(total) * total[..., -1:]
    drawn = torch.searchsorted(total, wanted, right=True)[..., 0]
    return drawn.clamp(max=logits.shape[-1] - 1)
