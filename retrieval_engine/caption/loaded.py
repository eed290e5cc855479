"""Opens what a caption run needs, so that stored vision states fit where they can."""

from pathlib import Path

from retrieval_engine.caption.ranking import Judge
from retrieval_engine.caption.run import CaptionRun
from retrieval_engine.errors import CheckpointInvalid, StoreNotFound, UsageError
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import Captioner, open_captioner
from retrieval_engine.records import Modality
from retrieval_engine.store import Store, open_store


def find_store(path: Path, *, needed: bool) -> Store | None:
    """The store at a path; None where there is none and none is needed.

    Raises:
        StoreNotFound: there is none, and it is what should be captioned.
    """
    try:
        return open_store(path)
    except StoreNotFound:
        if needed:
            raise
        return None


def arithmetic(dtype: str, store: Store | None) -> str:
    """The dtype asked for; `auto` follows a store that has vision states, so that they fit."""
    if dtype == "auto" and store and "tokens" in store.features(Modality.IMAGES):
        return store.spec.dtype
    return dtype


def open_writer(
    model: str,
    store: Store | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str = "",
) -> Captioner:
    """The captioner, in the arithmetic of the store's vision states where there are some.

    Raises:
        CheckpointNotFound: see `open_captioner`.
        CheckpointInvalid: the checkpoint writes no captions.
    """
    dtype = arithmetic(dtype, store)
    return open_captioner(model, device=device, dtype=dtype, adapter=adapter)


def open_judge(
    ranker: str | None,
    model: str,
    store: Store | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Judge:
    """Load the judge that orders and filters captions.

    Args:
        ranker: a retrieval checkpoint, or None: the captioner's own, else the store's.
        model: the captioner's checkpoint.
        store: see `open_writer`.
        device: as of `open_encoder`.
        dtype: as of `open_encoder`.

    Raises:
        UsageError: none of them has a matching head.
    """
    dtype = arithmetic(dtype, store)
    if ranker is not None:
        return Judge(open_encoder(ranker, device=device, dtype=dtype))
    tried = list(dict.fromkeys([model, *([store.spec.checkpoint] if store else [])]))
    for checkpoint in tried:
        try:
            return Judge(open_encoder(checkpoint, device=device, dtype=dtype))
        except (CheckpointInvalid, UsageError):
            continue
    raise UsageError(
        f"nothing can judge captions: {' and '.join(tried)} have no matching head",
        hint="name a retrieval checkpoint as `ranker`, e.g. Salesforce/blip-itm-base-coco",
    )


def states_notes(run: CaptionRun, store: Store | None, model: str) -> list[str]:
    """A line for people where a store's vision states cannot be used."""
    if store is None or run.states.store is not None:
        return []
    has = "tokens" in store.features(Modality.IMAGES)
    why = "are of another vision tower" if has else "are not there"
    return [f"tokens in {store.path} {why}: images are encoded for {model}"]
