"""Evaluation through a head: what it was trained on stays out of the gallery, and is named."""

from dataclasses import replace

from retrieval_engine.encoding.projected import leak_free
from retrieval_engine.evaluate.certificate import ITC, Protocol
from retrieval_engine.evaluate.leaks import TrainingSet
from retrieval_engine.heads import SavedHead
from retrieval_engine.records import Json
from retrieval_engine.store import Gallery


def head_protocol(saved: SavedHead) -> Protocol:
    """How scores come about when a head has made the vectors."""
    config = saved.config
    vectors = f"of what {config.kind} head {saved.weights[:12]} makes of `{config.feature}`"
    score = f"inner product {vectors}, L2-normalised, {ITC.score.partition(', ')[2]}"
    return replace(ITC, name="head", score=score)


def head_training_set(saved: SavedHead) -> TrainingSet:
    """What a head has seen, to look for leaks."""
    seen = saved.trained_on()
    return TrainingSet(
        what=f"head {saved.path}",
        items=frozenset(zip(seen.sources, seen.ids, strict=True)),
        keys=frozenset(seen.keys),
    )


def without_trained(
    gallery: Gallery, saved: SavedHead, *, keep: bool
) -> tuple[Gallery, dict[str, Json]]:
    """A gallery without the images a head was trained on or selected with.

    Where nothing would be left they stay, and are named: figures of images seen in training.

    Args:
        gallery: what is evaluated.
        saved: the head.
        keep: leave them in, and say so.

    Returns:
        The gallery, and for the certificate: which head, and how many images it had seen.
    """
    rest, seen = leak_free(gallery, saved)
    keep = keep or not len(rest)
    fact: dict[str, Json] = {
        "path": str(saved.path),
        "kind": saved.config.kind.value,
        "feature": saved.config.feature,
        "dim": saved.config.dim,
        "weights": saved.weights,
        "n_images_trained_on": seen,
        "left_out": not keep and seen > 0,
    }
    return (gallery if keep else rest), fact
