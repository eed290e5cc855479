"""Images of named things that no photograph is needed for: the backbone's classifier rows.

A row of the classifier points where the mean state of its class's pictures lies. Moved from the
mean state of all pictures along it, by a length in the classifier's own scale, it makes the states
of a picture that shows the thing at every place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError

_LENGTH = 8.0
_NOISE = 0.15  # of the channels' spread
_PLACES = 12  # of a prototype that the transformer sees: all are alike
_PAIR, _KIND = 0.25, 0.12
_TEMPLATES = (
    "a photo of {}",
    "{}",
    "{}",
    "a picture of {}",
    "there is {}",
    "a close up of {}",
    "{} in the picture",
    "a photograph showing {}",
)
_PAIRS = ("{} and {}", "{} and {}", "{} next to {}", "a photo of {} and {}", "{} with {}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassName:
    """What a row of the classifier is called: its names, and kinds of thing that it is."""

    names: Sequence[str]
    kinds: Sequence[str]


def read_class_names(path: Path, rows: int) -> list[ClassName]:
    """The lines of a `name | name; kind | kind` file.

    Args:
        path: the file; `imagenet` is the list of ImageNet's 1,000 classes that ships.
        rows: of the backbone's classifier.

    Raises:
        UsageError: it cannot be read or has not a line with a name for each row.
    """
    path = Path(__file__).parent / "imagenet-classes.txt" if str(path) == "imagenet" else path
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`class_names` {path} cannot be read: {error}") from error
    if len(lines) != rows:
        raise UsageError(
            f"`class_names` {path} has {len(lines)} lines, the backbone's classifier {rows} rows"
        )
    found = []
    for number, line in enumerate(lines, start=1):
        names, _, kinds = line.partition(";")
        sides = [
            [part.strip() for part in side.split("|") if part.strip()] for side in (names, kinds)
        ]
        if not sides[0]:
            raise UsageError(f"`class_names` {path}, line {number} names nothing")
        found.append(ClassName(names=sides[0], kinds=sides[1]))
    return found


class Prototypes:
    """Draws standardised states of named things, and texts for them.

    Args:
        rows: (k, c) weights of the backbone's classifier, for the first c of its channels; the
            others stay where the mean picture has them.
        names: of the k rows.
        scale: (channels,) the states' spread over pictures and places.
    """

    def __init__(
        self,
        rows: NDArray[np.float32],
        names: Sequence[ClassName],
        scale: NDArray[np.float32],
    ) -> None:
        # The mean of standardised states is 0: only the way from it is left.
        length = float((rows.astype(np.float64) ** 2).sum(1).mean())
        self._ways = np.zeros((len(rows), len(scale)), dtype=np.float32)
        self._ways[:, : rows.shape[1]] = _LENGTH * rows / length / scale[: rows.shape[1]]
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], list[str]]:
        """N things: (n, p, c) states and n texts, each of another class."""
        classes = rng.permutation(len(self._names))[: 2 * n]
        paired = rng.random(n) < _PAIR
        states = np.repeat(self._ways[classes[:n], None], _PLACES, axis=1)
        second = self._ways[classes[n:][: int(paired.sum())]]
        states[np.flatnonzero(paired), _PLACES // 2 :] = second[:, None]
        states += _NOISE * rng.standard_normal((n, 1, states.shape[-1]), dtype=np.float32)
        others = iter(classes[n:])
        texts = []
        for row, is_pair in zip(classes[:n], paired, strict=True):
            parts = [self._called(int(row), rng)]
            if is_pair:
                parts.append(self._called(int(next(others)), rng))
            templates = _PAIRS if is_pair else _TEMPLATES
            texts.append(templates[int(rng.integers(len(templates)))].format(*parts))
        return states, texts

    def _called(self, row: int, rng: np.random.Generator) -> str:
        """A name with its article, or now and then the kind of thing it is."""
        name = self._names[row]
        pool = name.kinds if name.kinds and rng.random() < _KIND else name.names
        word = pool[int(rng.integers(len(pool)))]
        if word.endswith("s") and not word.endswith("ss"):
            return word
        return f"an {word}" if word[0] in "aeiou" else f"a {word}"
