"""What a model family is, and how the one that knows a checkpoint is found.

A family is one folder in `models/` (or an entry point `vlre.models` of another distribution). Its
`__init__.py` has the functions of `Family`, which import the rest of the folder when they are
called: telling families apart from config.json must not load torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.checkpoint import Checkpoint, read_config
from retrieval_engine.plugins import Plugins
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.models.encoder import Encoder

FAMILIES = Plugins(
    package="retrieval_engine.models", noun="model family", group="vlre.models", folders=True
)


class Family(Protocol):
    """The functions in the `__init__.py` of a family's folder.

    A family may also have `open_captioner` (see `captioner`), `open_learner`
    (`learner`), `open_text_tower` (`text_tower`), and `recognise` and `translate` of its authors'
    files (`import_checkpoint`); one without them encodes, and nobody asks it for more.
    """

    def accepts(self, config: Mapping[str, Json]) -> bool:
        """Whether a config.json is one of this family's."""

    def part_of(self, name: str) -> str | None:
        """Part of the encoder that a tensor of this name decides; None for one of no part."""

    def open_encoder(self, checkpoint: Checkpoint, *, device: str, dtype: str) -> "Encoder":
        """Load an encoder; see `models.open_encoder`."""


def load_family(name: str) -> Family:
    """Import the model family of a name.

    Raises:
        UsageError: there is none.
    """
    return cast("Family", FAMILIES.load(name))


def family_with(name: str, function: str, does: str) -> Any:
    """The family of this name, if it has a function.

    Args:
        name: of the family.
        function: what it must have, e.g. `open_captioner`.
        does: what that is for, for the message, e.g. `writes captions`.

    Raises:
        CheckpointInvalid: it has not; the message lists the families that have.
    """
    family = load_family(name)
    if not hasattr(family, function):
        able = [other for other in FAMILIES.names() if hasattr(load_family(other), function)]
        raise CheckpointInvalid(
            f"no model of family {name} {does}", hint=f"families that can: {', '.join(able)}"
        )
    return family


def family_of(checkpoint: Checkpoint) -> str:
    """Name of the family that knows this checkpoint's config.

    Raises:
        CheckpointInvalid: no family does.
    """
    config = read_config(checkpoint.path)
    for name in FAMILIES.names():
        if load_family(name).accepts(config):
            return name
    seen = config.get("model_type") or config.get("architectures")
    raise CheckpointInvalid(
        f"{checkpoint.name} holds a model of type {seen!r}, which no model family knows",
        hint=f"families: {', '.join(FAMILIES.names())}; other encoders' vectors can be "
        "brought in with `import_embeddings()`",
    )
