"""What the models are asked, and what they answer besides hits and vectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.caption.decoding import DecodingOptions

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image that was sent, or an item's, ready for a model.

    Attributes:
        data: its file.
        key: sha256 of that.
        vectors: (v, d) its stored `itc`, where the store knows these very bytes.
        tokens: (t, w) its stored vision states, likewise, where those were asked for.
        pixels: what the model reads; None where nothing is to be encoded.
    """

    data: bytes
    key: str
    vectors: Vectors | None
    tokens: NDArray[Any] | None
    pixels: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A question for the encoder.

    Attributes:
        parts: words and images, each with its weight.
        k: how many images that fit; 0 asks for the vectors themselves.
        offset: leave out so many of the best.
        where: only images of which this holds.
    """

    parts: tuple[tuple[str | Picture, float], ...]
    k: int = 0
    offset: int = 0
    where: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Like:
    """Asks the encoder's thread for images like an item."""

    item_id: str
    k: int
    where: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """Asks the matcher how well texts fit an image."""

    picture: Picture
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Explain:
    """Asks the matcher where it looked for each word of a text."""

    picture: Picture
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """The probability that a text fits an image, and each word with its (g, g) map over it."""

    probability: float
    words: tuple[tuple[str, Vectors], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rerank:
    """Asks the matcher's thread for a search in the cross-encoder's order, or with probabilities.

    Attributes:
        text: what is searched for.
        k: how many images.
        offset: leave out so many of the best.
        rerank: so many of the nearest in the cross-encoder's order; 0 for none.
        where: only images of which this holds.
        min_match: leave out what matches with a lower probability.
    """

    text: str
    k: int
    offset: int
    rerank: int
    where: str = ""
    min_match: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """Asks a captioner for sentences about an image."""

    model: str
    picture: Picture
    options: DecodingOptions


@dataclass(frozen=True, slots=True)
class Written:
    """Sentences, best first, and the log-probability of each over its length."""

    captions: tuple[str, ...]
    scores: tuple[float, ...]
