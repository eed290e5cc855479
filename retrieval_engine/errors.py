"""Everything that can go wrong, as one tree.

    VlreError                          exit code 1, one line and a hint, no traceback
    ├── UsageError          (ValueError)  exit code 2: an option or argument is wrong
    ├── ShapeError          (ValueError)  an array has another shape or dtype than promised
    ├── MissingExtra        (ImportError) an optional library is not installed
    ├── PluginBroken        (ImportError) another distribution's plug-in cannot be imported
    ├── HubFailure                     the hub refuses, has it not, or is out of reach
    ├── SourceError                    a data source cannot be read
    │   ├── SourceEmpty                it was read, and there is nothing in it
    │   ├── UrlFailure                 what lies behind an address cannot be had
    │   │   └── UrlMissing             nothing does
    │   └── DecodeError                one item's bytes are no usable picture
    ├── ClusterFailure                 a cluster cannot be reached, or has no room
    ├── EncoderError                   a model cannot be loaded or run
    │   ├── CheckpointNotFound         neither a directory nor a reachable hub id
    │   └── CheckpointInvalid          found, but not what it must be
    ├── StoreError                     a store cannot be read or written
    │   ├── StoreNotFound
    │   ├── StoreDamaged               a checksum or a length does not agree
    │   ├── StoreChanged               it was overwritten or compacted while it was read
    │   ├── FeatureMissing             the store holds no such feature
    │   └── FingerprintMismatch        features of two encoders would be mixed
    ├── IndexFailure                   an index cannot be built, opened or searched
    │   └── NoImages                   there is nothing in the store, or in its split, yet
    ├── TrainingError                  a training cannot start or must stop
    └── EvaluationError                figures cannot be computed honestly

Raise where the fact is known: the value seen, the value allowed, what to do next. Arguments and
calls are named in backticks, as Python: `rerank=3`; commands print them as options.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from enum import StrEnum

Choice = TypeVar("Choice", bound="StrEnum")


class VlreError(Exception):
    """An explained failure: one line for people, and a hint what to do about it.

    Args:
        message: what was seen and what is allowed, in one line.
        hint: what to do next; shown on a line of its own.

    Examples:
        >>> from retrieval_engine import open_store
        >>> try:
        ...     open_store("nowhere")
        ... except VlreError as error:
        ...     print(f"{error.message}: {error.hint}")
        no store at nowhere: make one with `encode(source, store=PATH)`, or name another `store`
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by attributes, so that an error crosses a process border whole."""
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[VlreError], message: str, hint: str) -> VlreError:
    error = kind.__new__(kind)
    VlreError.__init__(error, message, hint=hint)
    return error


class UsageError(VlreError, ValueError):
    """An option or argument has a value that is not allowed."""

    exit_code = 2


class ShapeError(VlreError, ValueError):
    """An array has another shape or dtype than promised."""


class MissingExtra(VlreError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed", hint=f"install it with `pip install 'vlre[{extra}]'`"
        )


class PluginBroken(VlreError, ImportError):
    """A plug-in of another distribution cannot be imported."""


class HubFailure(VlreError):
    """The hub refuses something, does not have it, or cannot be reached."""


class SourceError(VlreError):
    """A data source cannot be read."""


class SourceEmpty(SourceError):
    """A source was read, and there is nothing in it.

    Args:
        message: what was looked for where.
        source: its name.
        hint: what to do next.
    """

    def __init__(self, message: str, *, source: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.source = source


class UrlFailure(SourceError):
    """What lies behind an address such as `s3://bucket/key` cannot be had, or may not be asked for."""


class UrlMissing(UrlFailure):
    """Nothing lies behind an address."""


class DecodeError(SourceError):
    """The bytes of one item are no picture that can be used; the message is the reason."""


class ClusterFailure(VlreError):
    """A cluster cannot be reached, fits not what is installed here, or has no room."""


class EncoderError(VlreError):
    """A model cannot be loaded or run."""


class CheckpointNotFound(EncoderError):
    """The checkpoint is neither a directory nor a hub id that can be reached."""


class CheckpointInvalid(EncoderError):
    """The checkpoint was found but is not what it must be."""


class StoreError(VlreError):
    """A store cannot be read or written."""


class StoreNotFound(StoreError):
    """There is no store at the path."""


class StoreDamaged(StoreError):
    """A file of the store is missing, shorter, or its checksum does not agree."""


class StoreChanged(StoreError):
    """The store was overwritten or compacted after it was opened; nothing is wrong with it."""


class FeatureMissing(StoreError):
    """The store does not hold the feature that was asked for."""


class FingerprintMismatch(StoreError):
    """Features of two different encoders would be mixed.

    Args:
        what: the thing that was refused, e.g. `head runs/mlp`.
        seen: its fingerprint.
        expected: the fingerprint it must have.
        hint: what to do about it.
    """

    def __init__(self, what: str, *, seen: str, expected: str, hint: str = "") -> None:
        super().__init__(
            f"{what} was made under encoder {seen[:12]}, expected {expected[:12]}",
            hint=hint or "use the store, index and head of one encoder, or encode again",
        )


class IndexFailure(VlreError):
    """An index cannot be built, opened or searched."""


class NoImages(IndexFailure):
    """A store, or a split of it, holds no images yet."""


class TrainingError(VlreError):
    """A training cannot start or must stop."""


class EvaluationError(VlreError):
    """Figures cannot be computed honestly from what was given."""


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line, and without its advice.

    Of pickled files that libraries advise to load all the same it says what they are.
    """
    text = str(error).strip() or type(error).__name__
    if "pickle" in text.lower() or "weights_only" in text:
        return "it holds pickled objects, which may run code when they are loaded"
    return " ".join(text.splitlines()[0].split())[:300]


def require_at_least(settings: object, least: float, *names: str) -> None:
    """Refuse fields of settings that are below a bound; None is not given.

    Raises:
        UsageError: it names the field and its value.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            allowed = f"at least {least:g}" if least else "0 or more"
            raise UsageError(f"`{name}` is {value}, must be {allowed}")


def one_of(kind: type[Choice], name: str, value: str) -> Choice:
    """A choice from its word, or as it is.

    Raises:
        UsageError: it is none; the message has all there are.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(choice.value or "(none)" for choice in kind)
        raise UsageError(f"`{name}` is {value!r}, must be one of {known}") from None


def accept_words(settings: object, **kinds: "type[StrEnum]") -> None:
    """Let fields of frozen settings be given as words: `loss="sigmoid"`; None is not given.

    Raises:
        UsageError: a word is none of the field's choices.
    """
    for name, kind in kinds.items():
        value = getattr(settings, name)
        if value is not None:
            object.__setattr__(settings, name, one_of(kind, name, value))
