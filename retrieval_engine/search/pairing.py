"""Which store, index and encoder belong together."""

from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import FingerprintMismatch, IndexFailure, UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import SavedIndex
from retrieval_engine.models import Encoder
from retrieval_engine.models.text_tower import reopen_for_texts
from retrieval_engine.records import Modality
from retrieval_engine.store import Store

IMPORTED = "external"


def check_pair(index: SavedIndex, store: Store | None, split: str | None) -> None:
    """Refuse an index that does not go with a store and a split.

    Args:
        index: an index.
        store: the store that is searched with it, or None.
        split: the split that is searched, or None for all items.

    Raises:
        FingerprintMismatch: the index holds vectors of another encoder.
        IndexFailure: it holds another split, or vectors that passed another head.
    """
    held = index.manifest.split
    if held != (split or ""):
        raise IndexFailure(
            f"{index.path} holds {f'split {held!r}' if held else 'all items'}, "
            f"not {f'split {split!r}' if split else 'all items'}",
            hint=f"build one with `build_index(out=OUT{f', split={split!r}' if split else ''})`",
        )
    if store is not None:
        _check_encoder(index, store)


def _check_encoder(index: SavedIndex, store: Store) -> None:
    feature = store.features(Modality.IMAGES).get(index.manifest.feature)
    # Not the encoder's fingerprint: one whose text side alone has changed keeps its images.
    if feature is not None and feature.fingerprint == index.manifest.feature_fingerprint:
        return
    again = f"build it again with {_build(store, index)}"
    if index.manifest.fingerprint == store.fingerprint:
        raise IndexFailure(
            f"{index.path} holds other {index.manifest.feature} vectors than {store.path} does: "
            "one of the two is seen through a head, or through another one",
            hint=f"search with the `head` that it was built with, or {again}",
        )
    raise FingerprintMismatch(
        f"index {index.path}",
        seen=index.manifest.fingerprint,
        expected=store.fingerprint,
        hint=again,
    )


def _build(store: Store, index: SavedIndex) -> str:
    return f"`build_index(store={str(store.path)!r}, out={str(index.path)!r})`"


def open_query_encoder(spec: EncoderSpec, *, device: str, model: str = "") -> Encoder:
    """The encoder that a spec names.

    Raises:
        UsageError: the vectors were imported, so that no encoder is at hand.
        EncoderError: it cannot be loaded.
    """
    if spec.family == IMPORTED:
        raise UsageError(
            f"the vectors of {spec.checkpoint!r} were imported: words and images cannot be "
            "encoded here",
            hint="encode the query where the vectors come from, and search with those `vectors`",
        )
    return reopen_for_texts(spec, device=device, model=model)


def through_head(encoder: Encoder, store: Store | None) -> Encoder:
    """The encoder seen through the head that the store is seen through, if it is."""
    if not isinstance(store, ProjectedStore):
        return encoder
    from retrieval_engine.heads import HeadedEncoder

    return HeadedEncoder(encoder, store.saved)


def check_head(
    encoder: Encoder, store: Store | None, index: SavedIndex | None, feature: str
) -> None:
    """Refuse an encoder whose vectors pass through another head than those that are searched.

    Raises:
        IndexFailure: the two sides would lie in different spaces.
    """
    emitted = encoder.features(Modality.IMAGES).get(feature)
    if index is not None:
        held: str | None = index.manifest.feature_fingerprint
    else:
        form = store.features(Modality.IMAGES).get(feature) if store else None
        held = form.fingerprint if form else None
    if emitted is not None and held is not None and emitted.fingerprint != held:
        raise IndexFailure(
            f"what is searched holds other {feature} vectors than {encoder.spec.checkpoint} emits",
            hint="an index built with `head=DIR` is searched with its store and the same `head`",
        )
