"""What decides an encoder's numbers, and the digest that stands for it.

A store, a head, an adapter and an index record the fingerprint they were made under. Equal
fingerprints mean equal numbers; a difference is refused, never a warning.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from retrieval_engine.records import Json

_NOT_HASHED = ("checkpoint", "revision")
_IMAGE_FIELDS = ("family", "image_size", "preprocessing", "dtype")
# Features were stored under these before pooling was part of their fingerprints; they keep them.
_UNNAMED_POOLING = {
    ("blip", "cls"),
    ("blip2", "mean of queries, cls of texts"),
    ("blip2", "mean"),
}
_TEXT_FIELDS = ("family", "vocabulary", "text_normaliser", "text_length", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """All that decides the numbers an encoder emits. Two equal specs give equal vectors.

    `checkpoint` and `revision` say for people where the weights came from. They are not hashed:
    the weights themselves are, so that a moved directory keeps its features and a changed file
    under an old name does not.

    Attributes:
        family: name of a folder in `models/`, or `external` for imported vectors.
        checkpoint: hub id or directory as given.
        revision: hub commit, or empty.
        weights: digest of each part's tensors and of the configuration that shapes their use, by
            part: `vision` (tower), `image` (what maps its states to `itc` and `pooled`), `text`
            (what maps a caption to the same), `itm` (what only pair scores need).
        vocabulary: digest of the tokenizer.
        adapter: digest of the adapter's weights, or empty.
        image_size: side of the square input in pixels.
        preprocessing: name and version of decode, resize and normalisation.
        text_normaliser: name and version of the caption cleaning.
        text_length: number of tokens a caption is cut to, [CLS] and [SEP] included.
        dtype: dtype of the towers' arithmetic, e.g. `bfloat16`.
        pooling: how `pooled` is made.
        extra: what else decides the numbers of a family's features.

    Examples:
        >>> spec = EncoderSpec(family="blip", checkpoint="here", weights={"vision": "9f2c"})
        >>> moved = EncoderSpec(family="blip", checkpoint="elsewhere", weights={"vision": "9f2c"})
        >>> spec.fingerprint == moved.fingerprint
        True
        >>> tuned = EncoderSpec(family="blip", checkpoint="here", weights={"vision": "41aa"})
        >>> spec.fingerprint == tuned.fingerprint
        False
    """

    family: str
    checkpoint: str
    weights: Mapping[str, str]
    revision: str = ""
    vocabulary: str = ""
    adapter: str = ""
    image_size: int = 0
    preprocessing: str = ""
    text_normaliser: str = ""
    text_length: int = 0
    dtype: str = "float32"
    pooling: str = ""
    extra: Mapping[str, Json] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything above but `checkpoint` and `revision`, 64 hex digits.

        A field at its default is left out, so that a field added later keeps old fingerprints.
        """
        values = asdict(self)
        decisive = {f.name: values[f.name] for f in fields(self) if f.name not in _NOT_HASHED}
        plain = EncoderSpec(family="", checkpoint="", weights={})
        return digest({k: v for k, v in decisive.items() if v != getattr(plain, k)})

    def part(self, *parts: str) -> str:
        """Fingerprint of one feature: of the named parts' weights and of their side's settings.

        Args:
            parts: names in `weights`; `text` and `itm` take the text settings, `shared` (what
                both sides run through) none of its own, others the image settings.
        """
        fields: set[str] = set()
        for part in parts:
            if part != "shared":
                fields.update(_TEXT_FIELDS if part in ("text", "itm") else _IMAGE_FIELDS)
        settings = {name: getattr(self, name) for name in sorted(fields)}
        if fields and self.pooling and (self.family, self.pooling) not in _UNNAMED_POOLING:
            settings["pooling"] = self.pooling
        if fields and self.extra:
            settings["extra"] = dict(self.extra)
        return digest({"settings": settings, "weights": {p: self.weights[p] for p in parts}})

    def to_json(self) -> dict[str, Json]:
        """The spec as JSON values; `from_json` reads it back."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "EncoderSpec":
        """A spec from what `to_json` wrote.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return cls(**value)  # type: ignore[arg-type]


def digest(value: object) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces), 64 hex digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
