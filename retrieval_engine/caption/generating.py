"""Writes the captions of a batch of images from their vision states.

Images that are done leave the batch when half of it is, so that one long sentence does not keep
the others' keys and values alive; a caption depends on what else is in its batch by rounding alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from retrieval_engine.caption.beams import BeamSearch, Candidate, Sentence
from retrieval_engine.caption.decoding import BeamRule, DecodingOptions, Method
from retrieval_engine.caption.logit_rules import LogitRules, adjustment, draw
from retrieval_engine.errors import UsageError
from retrieval_engine.models.captioner import Captioner, DecodingState
from retrieval_engine.models.lexicon import lexicon_of


def write_captions(
    captioner: Captioner, tokens: Tensor, names: Sequence[str], options: DecodingOptions
) -> list[list[Sentence]]:
    """Write captions for a batch of images.

    Args:
        captioner: the model.
        tokens: (n, t, w) vision states.
        names: (n,) what the images are called; with the seed they decide what is drawn.
        options: how to choose words.

    Returns:
        For each image `options.num_captions` sentences, best first; of several temperatures each
        in its place.

    Raises:
        UsageError: the prompt leaves no room, or the model cannot write so long a sentence.
    """
    options = complete(options, captioner)
    prompt, _ = _checked(captioner, options)
    try:
        with torch.inference_mode(), captioner.autocast():
            states = tokens.to(captioner.device, captioner.dtype)
            logits, decoding = captioner.begin(states, prompt)
            batch = _Batch(captioner, options, logits, decoding)
            if options.method is Method.BEAMS:
                return batch.search()
            uniform = None
            if options.method is Method.SAMPLING:
                uniform = _uniform(names, options, batch.max_length).to(captioner.device)
            return batch.choose(uniform)
    except torch.OutOfMemoryError:
        if len(tokens) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(tokens) // 2
    return [
        *write_captions(captioner, tokens[:middle], names[:middle], options),
        *write_captions(captioner, tokens[middle:], names[middle:], options),
    ]


def complete(options: DecodingOptions, captioner: Captioner) -> DecodingOptions:
    """The options with what the model's files say where nothing was given."""
    prompt = captioner.prompt if options.prompt is None else options.prompt
    length = options.max_length
    if length is None:
        length = max(captioner.default_length, options.min_length)
    penalty, ngram = options.repetition_penalty, options.no_repeat_ngram
    return replace(
        options,
        prompt=prompt,
        max_length=length,
        repetition_penalty=captioner.repetition_penalty if penalty is None else penalty,
        no_repeat_ngram=captioner.no_repeat_ngram if ngram is None else ngram,
    )


def _checked(captioner: Captioner, options: DecodingOptions) -> tuple[str, int]:
    """Prompt and greatest length, the prompt included, of complete options."""
    assert options.prompt is not None
    assert options.max_length is not None
    begun = len(captioner.prompt_ids(options.prompt))
    if captioner.prompt_counts and begun >= options.max_length:
        raise UsageError(
            f"`max_length={options.max_length}` leaves no room after the {begun} tokens of "
            f"{options.prompt!r}"
        )
    whole = options.max_length + (0 if captioner.prompt_counts else begun)
    if whole > captioner.longest:
        raise UsageError(
            f"`max_length={options.max_length}` is more than {captioner.spec.checkpoint} can write "
            f"({captioner.longest} tokens, the prompt among them)"
        )
    return options.prompt, whole


def _uniform(names: Sequence[str], options: DecodingOptions, length: int) -> Tensor:
    """(n, b, length) float64 in [0, 1), a stream of its own for each image."""
    drawn = []
    for name in names:
        seed = hashlib.sha256(f"{options.seed or 0}:{name}".encode()).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:16])))
        drawn.append(random.random((options.num_captions, length)))
    return torch.from_numpy(np.stack(drawn))


class _Batch:
    """The images under way, and what is known of their sentences.

    `self.active` has the numbers of the images that are still in the batch, in its order.
    """

    def __init__(
        self,
        captioner: Captioner,
        options: DecodingOptions,
        logits: Tensor,
        decoding: DecodingState,
    ) -> None:
        self.options = options
        prompt, self.max_length = _checked(captioner, options)
        self.prompt = captioner.prompt_ids(prompt)
        not_counted = 0 if captioner.prompt_counts else len(self.prompt)
        self.end_id = captioner.end_id
        self.less = adjustment(captioner, options.logit_adjustment)
        self.logits = self._adjusted(logits[:, None])  # (n, b, v), b = 1 at first
        self.decoding = decoding
        self.active = torch.arange(len(logits), device=logits.device)
        self.rules = LogitRules(
            end_id=self.end_id,
            min_length=options.min_length + not_counted,
            repetition_penalty=options.repetition_penalty or 1.0,
            no_repeat_ngram=options.no_repeat_ngram or 0,
            lexicon=lexicon_of(captioner),
        )
        begun = torch.tensor(self.prompt, dtype=torch.long, device=logits.device)
        self.sentences = begun.expand(len(logits), 1, -1)  # (n, b, l)

    def _adjusted(self, logits: Tensor) -> Tensor:
        return logits if self.less is None else logits - self.less

    def leave(self, going: Tensor) -> bool:
        """Drop the images that are done, when they are many. False when none is left.

        Args:
            going: (n,) bool, whether each image goes on.
        """
        left = int(going.sum())
        if left and left <= len(going) // 2:
            stay = going.nonzero()[:, 0]
            self.decoding.keep(stay)
            self.active, self.sentences = self.active[stay], self.sentences[stay]
        return left > 0

    def choose(self, uniform: Tensor | None) -> list[list[Sentence]]:
        """Greedy decoding, or sampling with numbers that decide; see `_uniform`."""
        n, b = len(self.logits), self.options.width
        self.logits = self.logits.expand(n, b, -1).contiguous()
        self.sentences = self.sentences.expand(n, b, -1)
        device = self.logits.device
        ids = torch.full((n, b, self.max_length), self.end_id, device=device)
        sums = torch.zeros((n, b), device=device)
        lengths = torch.zeros((n, b), device=device)
        open_rows = torch.ones((n, b), dtype=torch.bool, device=device)
        start = len(self.prompt)
        for place in range(start, self.max_length):
            chosen, gained = self._next(uniform, place)
            ids[self.active, :, place] = torch.where(open_rows, chosen, self.end_id)
            sums[self.active] += torch.where(open_rows, gained, 0.0)
            lengths[self.active] += open_rows
            open_rows = open_rows & (chosen != self.end_id)
            going = open_rows.any(1)
            before = len(self.active)
            self.sentences = torch.cat((self.sentences, chosen[..., None]), dim=-1)
            if place + 1 == self.max_length or not self.leave(going):
                break
            if len(self.active) < before:
                chosen, open_rows = chosen[going], open_rows[going]
            self.logits = self._adjusted(self.decoding.step(chosen, None))
        scores = (sums / lengths.clamp(min=1)).cpu()
        found = [
            [self._sentence(row[start:], float(s)) for row, s in zip(*rows, strict=True)]
            for rows in zip(ids.tolist(), scores, strict=True)
        ]
        # Those of several temperatures stay in the order of these.
        in_order = isinstance(self.options.temperature, tuple)
        return found if in_order else [_sorted(sentences) for sentences in found]

    def _next(self, uniform: Tensor | None, place: int) -> tuple[Tensor, Tensor]:
        """(n, b) tokens chosen and the log-probability the model gave them."""
        logits = self.logits
        normaliser = logits.logsumexp(-1)
        kept = logits.clone() if self._ruled else logits
        scores = self.rules(self.sentences, kept)
        if uniform is None:
            chosen = scores.argmax(-1)
        else:
            chosen = draw(
                scores,
                uniform[self.active, :, place - len(self.prompt)],
                temperature=_temperature(self.options),
                top_k=self.options.top_k,
                top_p=self.options.nucleus,
            )
        gained = logits.gather(-1, chosen[..., None])[..., 0] - normaliser
        return chosen, gained

    @property
    def _ruled(self) -> bool:
        """Whether the rules may change scores at all."""
        rules = self.rules
        return (
            rules.repetition_penalty != 1
            or rules.no_repeat_ngram > 0
            or self.options.min_length > 0
            or rules.lexicon is not None
        )

    def _sentence(self, ids: Sequence[int], score: float) -> Sentence:
        end = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return Sentence(tuple(ids[:end]), score)

    def search(self) -> list[list[Sentence]]:
        """Write the captions of the batch by beam search."""
        options = self.options
        searches = [
            BeamSearch(
                width=options.width,
                end_id=self.end_id,
                prompt_length=len(self.prompt),
                max_length=self.max_length,
                length_penalty=1.0 if options.length_penalty is None else options.length_penalty,
                rule=options.beam_rule or BeamRule.ORIGINAL,
            )
            for _ in range(len(self.logits))
        ]
        totals = torch.zeros(self.logits.shape[:2], device=self.logits.device)
        while True:
            steps = self._advance(searches, totals)
            if steps is None:
                break
            chosen, parents, totals = steps
            self.logits = self._adjusted(self.decoding.step(chosen, parents))
        return [search.finished[: options.num_captions] for search in searches]

    def _advance(
        self, searches: Sequence[BeamSearch], totals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """One step of every search; (n, b) tokens, parents and sums, or None when all are done."""
        n, b, v = self.logits.shape
        scores = self.rules(self.sentences, self.logits.log_softmax(-1)) + totals[..., None]
        best, places = scores.view(n, b * v).topk(min(2 * self.options.width, b * v), dim=-1)
        places = places.cpu()  # waits; what follows does not
        table = zip(
            self.active.tolist(),
            (places // v).tolist(),
            (places % v).tolist(),
            best.tolist(),
            strict=True,
        )
        steps, going = [], []
        for number, beams, tokens, sums in table:
            search = searches[number]
            candidates = [Candidate(*c) for c in zip(beams, tokens, sums, strict=True)]
            # An image that is done stays in the batch for a while; its rows mean nothing.
            steps.append(
                candidates[: self.options.width] if search.is_done else search.advance(candidates)
            )
            going.append(not search.is_done)
        device = self.logits.device
        chosen = torch.tensor([[c.token for c in step] for step in steps], device=device)
        parents = torch.tensor([[c.beam for c in step] for step in steps], device=device)
        sums = torch.tensor([[c.score for c in step] for step in steps], device=device)
        rows = torch.arange(n, device=device)[:, None]
        self.sentences = torch.cat((self.sentences[rows, parents], chosen[..., None]), dim=-1)
        stay = torch.tensor(going, device=device)
        before = len(self.active)
        if not self.leave(stay):
            return None
        if len(self.active) < before:
            chosen, parents, sums = chosen[stay], parents[stay], sums[stay]
        return chosen, parents, sums


def _temperature(options: DecodingOptions) -> float | Tensor:
    asked = options.temperature
    return torch.tensor(asked) if isinstance(asked, tuple) else asked or 1.0


def _sorted(sentences: list[Sentence]) -> list[Sentence]:
    return sorted(sentences, key=lambda sentence: -sentence.score)
