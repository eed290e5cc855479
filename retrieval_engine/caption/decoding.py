"""How the words of a caption are chosen, with contradictions refused."""

from dataclasses import asdict, dataclass
from enum import StrEnum

from retrieval_engine.errors import UsageError, accept_words, require_at_least
from retrieval_engine.records import Json

BEAMS, NUCLEUS = 3, 0.9  # BLIP's own defaults


class Method(StrEnum):
    """The three ways to choose words."""

    GREEDY = "greedy"
    BEAMS = "beams"
    SAMPLING = "sampling"


class BeamRule(StrEnum):
    """How finished sentences of a beam search are compared, and when the search ends.

    ORIGINAL is what BLIP and LAVIS were published with (transformers 4.15): the log-probability
    over the number of tokens with the prompt and without the end token; an image is done when its
    worst kept sentence is no worse than the best continuation at the present length.
    TRANSFORMERS is what transformers 5 does: the number of tokens without the prompt and with the
    end token.
    """

    ORIGINAL = "original"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """How to write captions. None means: not said; what contradicts is refused, never ignored.

    Attributes:
        beams: width of the beam search; 1 is greedy. Default 3, or 1 under `sample`.
        sample: draw words at random instead.
        temperature: of sampling, above 0; default 1. Several: one for each of `num_captions`.
        top_k: sample among so many words only.
        top_p: sample among the likeliest words that make up this probability (nucleus sampling,
            Holtzman et al., ICLR 2020); default 0.9, as BLIP's authors have it, or 1 with `top_k`.
        seed: of sampling; an image's captions depend on it and the image's name alone.
        num_captions: different sentences for each image.
        max_length: tokens of a sentence at most, as the authors count: BLIP's include [DEC] and
            the prompt ("a picture of" is 4 with it), BLIP-2's are those written after it. None is
            what the checkpoint's generation_config.json says, else 30.
        min_length: no end before so many tokens, counted alike.
        length_penalty: exponent of the length in the score of a beam; default 1.
        beam_rule: default `original`.
        repetition_penalty: above 1 makes a word that was written already less likely (Keskar et
            al., CTRL, 2019). Trap: words of the prompt count. None is what the checkpoint says.
        no_repeat_ngram: never write the same so many tokens twice; 0 allows it. None is what the
            checkpoint says.
        logit_adjustment: so much of the log frequency that a word's pieces have in the captions of
            the training is taken from their logits (Menon et al., ICLR 2021): captions of more
            different words, and a little less alike to what people write. From 0 to 1.
        prompt: beginning of every sentence; None is what the checkpoint was trained with.
    """

    beams: int | None = None
    sample: bool = False
    temperature: float | tuple[float, ...] | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    num_captions: int = 1
    max_length: int | None = None
    min_length: int = 1
    length_penalty: float | None = None
    beam_rule: BeamRule | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    logit_adjustment: float = 0.0
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range or contradicts.

        Raises:
            UsageError: it names both sides.
        """
        accept_words(self, beam_rule=BeamRule)
        self._check_ranges()
        if self.sample and (self.beams or 1) > 1:
            raise UsageError(
                f"`sample` and `beams={self.beams}` contradict each other",
                hint="sampling draws words at random, beams keep the likeliest: choose one",
            )
        for name in ("temperature", "top_k", "top_p", "seed"):
            value = getattr(self, name)
            if value is not None and not self.sample:
                raise UsageError(
                    f"`{name}` {value} has no effect on {self._called()}",
                    hint="add `sample` to draw words at random",
                )
        for name in ("length_penalty", "beam_rule"):
            value = getattr(self, name)
            if value is not None and self.method is not Method.BEAMS:
                raise UsageError(
                    f"`{name}` {value} has no effect on {self._called()}",
                    hint=f"it is of beam search: add `beams={BEAMS}`",
                )
        self._check_variations()

    def _check_ranges(self) -> None:
        require_at_least(self, 1, "beams", "top_k", "num_captions", "max_length")
        require_at_least(self, 0, "min_length", "no_repeat_ngram", "seed")
        warmths = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        for name, values in (
            ("temperature", warmths),
            ("repetition_penalty", (self.repetition_penalty,)),
        ):
            for value in values:
                if value is not None and not 0 < value < float("inf"):
                    raise UsageError(f"`{name}` is {value}, must be above 0")
        if isinstance(self.temperature, tuple) and len(self.temperature) != self.num_captions:
            raise UsageError(
                f"`num_captions={self.num_captions}`, and {len(self.temperature)} temperatures: "
                "each caption has its own"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` is {self.top_p}, must be above 0 and at most 1")
        if not 0 <= self.logit_adjustment <= 1:
            raise UsageError(f"`logit_adjustment` is {self.logit_adjustment}, must be from 0 to 1")
        if self.max_length is not None and self.min_length > self.max_length:
            raise UsageError(
                f"`min_length={self.min_length}` is above `max_length={self.max_length}`"
            )

    def _check_variations(self) -> None:
        if self.method is Method.GREEDY and self.num_captions > 1:
            raise UsageError(
                f"`num_captions={self.num_captions}`: greedy decoding knows one caption",
                hint="add `sample`, or `beams` with at least as many",
            )
        if self.method is Method.BEAMS and self.num_captions > self.width:
            raise UsageError(
                f"`num_captions={self.num_captions}` is more than `beams={self.width}`",
                hint=f"use `beams={self.num_captions}` or more, or `sample`",
            )

    def _called(self) -> str:
        names = {Method.GREEDY: "greedy decoding", Method.BEAMS: "beam search"}
        return names.get(self.method, "sampling")

    @property
    def method(self) -> Method:
        """Which of the three ways this is."""
        if self.sample:
            return Method.SAMPLING
        return Method.GREEDY if self.beams == 1 else Method.BEAMS

    @property
    def width(self) -> int:
        """Sentences of an image under way at once."""
        if self.method is Method.BEAMS:
            return BEAMS if self.beams is None else self.beams
        return self.num_captions

    @property
    def nucleus(self) -> float:
        """The probability that sampling draws from."""
        if self.top_p is not None:
            return self.top_p
        return NUCLEUS if self.top_k is None else 1.0

    def to_json(self) -> dict[str, Json]:
        """What decides the captions: only that which the method looks at, defaults filled in."""
        found: dict[str, Json] = {"method": self.method.value}
        every = ("num_captions", "max_length", "min_length", "repetition_penalty")
        names = [*every, "no_repeat_ngram", "prompt"]
        if self.method is Method.SAMPLING:
            names += ["temperature", "top_k", "top_p", "seed"]
        names += ["logit_adjustment"] * (self.logit_adjustment > 0)  # runs without keep their name
        values = asdict(self)
        found |= {name: values[name] for name in names}
        if self.method is Method.SAMPLING:
            own = self.temperature
            found["temperature"] = list(own) if isinstance(own, tuple) else own or 1.0
            found["top_p"] = self.nucleus
            found["seed"] = self.seed or 0
        if self.method is Method.BEAMS:
            found["beams"] = self.width
            found["length_penalty"] = 1.0 if self.length_penalty is None else self.length_penalty
            found["beam_rule"] = (self.beam_rule or BeamRule.ORIGINAL).value
        return found
