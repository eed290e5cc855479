"""The encoder that turns queries into the vectors a store or an index holds."""

from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import IndexFailure, UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import Index, SavedIndex
from retrieval_engine.models import Encoder
from retrieval_engine.models.text_tower import reopen_for_texts
from retrieval_engine.records import Modality
from retrieval_engine.store import Store

IMPORTED = "external"


def open_query_encoder(
    spec: EncoderSpec, store: Store | None, *, device: str, model: str = ""
) -> Encoder:
    """The encoder that a spec names, seen through the store's head if it has one.

    Raises:
        UsageError: the vectors were imported, so that no encoder is at hand.
        EncoderError: it cannot be loaded.
    """
    if spec.family == IMPORTED:
        raise UsageError(
            f"the vectors of {spec.checkpoint!r} were imported: words and pictures cannot be "
            "encoded here",
            hint="encode the query where the vectors come from, and search with those `vectors`",
        )
    encoder = reopen_for_texts(spec, device=device, model=model)
    if not isinstance(store, ProjectedStore):
        return encoder
    from retrieval_engine.heads import HeadedEncoder

    return HeadedEncoder(encoder, store.saved)


def check_head(encoder: Encoder, store: Store | None, index: Index, feature: str) -> None:
    """Refuse an encoder whose vectors pass through another head than those that are searched.

    Raises:
        IndexFailure: the two sides would lie in different spaces.
    """
    emitted = encoder.features(Modality.IMAGES).get(feature)
    if isinstance(index, SavedIndex):
        held: str | None = index.manifest.feature_fingerprint
    else:
        form = store.features(Modality.IMAGES).get(feature) if store else None
        held = form.fingerprint if form else None
    if emitted is not None and held is not None and emitted.fingerprint != held:
        raise IndexFailure(
            f"what is searched holds other {feature} vectors than {encoder.spec.checkpoint} emits",
            hint="an index built with `head=DIR` is searched with its store and the same `head`",
        )
