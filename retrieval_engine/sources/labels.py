"""What a source may know beyond its captions; a trainer uses it where it is there.

`isinstance(source, Labelled)` tells. Only sources that make their pictures themselves can say what
covers each patch, and which sentences are true of which picture.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.records import Item, Json


@runtime_checkable
class Labelled(Protocol):
    """A source that can label the patches of its pictures and judge sentences about them.

    A sentence and a picture are both sets of atoms: a sentence is true of a picture when
    `claims(text) <= facts(item.meta)`. Make each set once and compare as often as you like.
    """

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        """The classes of each aspect, e.g. `kind` and `colour`; class 0 is `nothing`."""

    def patch_labels(self, item: Item, grid: int) -> Mapping[str, NDArray[np.uint8]]:
        """For each aspect the class of what covers each patch.

        Args:
            item: an item of this source.
            grid: patches along an edge of the picture; any number, e.g. a multiple of the
                model's grid to shift or flip before reducing.

        Returns:
            (grid, grid) uint8 arrays by aspect, row 0 at the top.
        """

    def facts(self, meta: Mapping[str, Json], *, mirrored: bool = False) -> frozenset[str]:
        """All that may be claimed of an item's picture, or of its mirror image."""

    def claims(self, text: str) -> frozenset[str] | None:
        """What a sentence claims; None when it is not understood or claims nothing."""
