"""The study of a published notebook, told honestly: do projection heads on BLIP features help?

The notebook (mukhilDS/Vision-Language_Final_project) measured on a gallery that held its training pairs, took an untrained random projection
for what the encoder can do, used one caption of five, and called a longer training of the linear
head an MLP. Here every run is measured on images that no head has seen, beside the encoder's own
ITC, with a true MLP, and the effect of the captions stands by itself.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import TrainingError, UsageError
from retrieval_engine.evaluate.compare import Comparison, compare, open_runs, write_report
from retrieval_engine.heads import HeadKind
from retrieval_engine.models import open_encoder
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Modality
from retrieval_engine.store import Store, open_store
from retrieval_engine.train.head import (
    CaptionChoice,
    HeadRecipe,
    notebook_recipe,
    train_head,
    untrained_head,
)

_VAL_SHARE = 10
_LARGEST_VAL = 500
_FEWEST_TEST = 10
_TITLE = "Projection heads on cached features"
_NO_ITC = (
    "{} has no ITC as shipped: its query states and its language model's states lie in spaces that "
    "nothing ties together. A retrieval checkpoint (Salesforce/blip2-itm-vit-g) has it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStudy:
    """Settings of a study of projection heads.

    Attributes:
        source: images with captions.
        model: the encoder's checkpoint.
        feature: what heads read; a checkpoint with a language model has `pooled` alone.
        train_size: images to train on at most.
        test_size: images to keep for the test where the source has no split `test`.
        seed: of split and weights.
        device: for encoder and heads.
    """

    source: str
    model: str
    feature: str = "pooled"
    train_size: int = 5000
    test_size: int = 1000
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.train_size < 2 or self.test_size < _FEWEST_TEST:
            raise UsageError(
                f"a study needs 2 images to train on and {_FEWEST_TEST} to test on at least, got "
                f"{self.train_size} and {self.test_size}"
            )


def study_heads(
    study: HeadStudy, out: Path, *, progress: Progress | None = None
) -> tuple[Comparison, Path]:
    """Encode, train every head, compare, write the report.

    Args:
        study: what is studied.
        out: gets `store/`, `heads/` and `report/`.
        progress: told about every step.

    Returns:
        The comparison, and the report's page.

    Raises:
        SourceError, EncoderError: the source or the encoder cannot be opened.
        TrainingError: too few images.
        MissingExtra: matplotlib is not installed.
    """
    comparison = compare_heads(study, out, progress=progress)
    written = write_report(comparison, out / "report", title=_TITLE)
    return comparison, written.page


def compare_heads(study: HeadStudy, out: Path, *, progress: Progress | None = None) -> Comparison:
    """The study without its report; see `study_heads`.

    What is encoded already is not encoded again; heads are trained anew, which takes seconds.
    """
    progress = progress or Silent()
    encoder = open_encoder(study.model, device=study.device)
    has_itc = all("itc" in encoder.features(side) for side in Modality)
    wanted = ("itc", study.feature) if has_itc else (study.feature,)
    encode(
        study.source,
        out / "store",
        encoder=encoder,
        options=EncodeOptions(features=tuple(dict.fromkeys(wanted))),
        progress=progress,
    )
    store = open_store(out / "store")
    recipe, split = _plan(store, study)
    untrained_head(store, out / "heads" / "untrained", recipe)
    runs = ["ITC as encoded=itc"] if has_itc else []
    runs.append(f"untrained projection={out / 'heads' / 'untrained'}")
    for name, each in _recipes(recipe).items():
        progress.say(f"training: {name}")
        folder = out / "heads" / name.replace(" ", "-").replace(",", "").replace('"', "")
        train_head(store, folder, each, device=study.device, progress=progress)
        runs.append(f"{name}={folder}")
    comparison = compare(open_runs(runs, out / "store"), split=split)
    if has_itc:
        return comparison
    remarks = (*comparison.remarks, _NO_ITC.format(study.model))
    return replace(comparison, remarks=remarks)


def _recipes(recipe: HeadRecipe) -> dict[str, HeadRecipe]:
    mlp = replace(recipe, kind=HeadKind.MLP)
    return {
        "notebook linear": notebook_recipe(recipe),
        'notebook "MLP"': notebook_recipe(mlp),
        "linear, first caption": replace(recipe, captions=CaptionChoice.FIRST),
        "linear": recipe,
        "MLP": mlp,
    }


def _plan(store: Store, study: HeadStudy) -> tuple[HeadRecipe, str | None]:
    """The recipe that all heads share, and the split to measure on; None for what they leave."""
    gallery = store.gallery()
    recipe = HeadRecipe(feature=study.feature, seed=study.seed, train_size=study.train_size)
    if "test" in set(gallery.splits):
        return recipe, "test"
    images = len(gallery)
    val = min(_LARGEST_VAL, images // _VAL_SHARE)
    train = min(study.train_size, images - val - study.test_size)
    if train < 2 or val < 2:
        raise TrainingError(
            f"{images:,} images are too few for {study.test_size:,} to test on and some to train",
            hint="take a larger source, or a smaller `test_size`",
        )
    return replace(recipe, train_size=train, val_size=val), None
