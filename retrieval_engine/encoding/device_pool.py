"""An encoder on several devices, each in a process of its own; see `model_pool` for how they share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from retrieval_engine.encoding.device import Facts, check_same
from retrieval_engine.encoding.model_pool import ModelPool
from retrieval_engine.encoding.places import placed
from retrieval_engine.encoding.steps import Batch
from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays, Encoder, open_encoder, reopen_encoder
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.progress import Progress
from retrieval_engine.records import Feature, Modality
from retrieval_engine.store.keys import raw_keys
from retrieval_engine.store.shard import check_block

OpenModel = Callable[..., Encoder]
"""`open_model(device=NAME)` opens the same model on any device; it can be pickled."""


@contextmanager
def open_devices(
    devices: Sequence[str] | str,
    open_model: OpenModel,
    *,
    on: str = "",
    least_s: float = 60.0,
    progress: Progress | None = None,
) -> Iterator["DevicePool"]:
    """A pool of devices whose encoders are open; leaving the context ends their processes.

    Args:
        devices: names as torch has them, one for each model, or `all`, `cpu:2`, …; see `placed`.
        open_model: `open_model(device=NAME)` opens the model; it travels to the processes, as in
            `partial(open_encoder, "vlre-photo", dtype="float32")`.
        on: empty for processes of this machine, or a Ray cluster: `ray`, `HOST:PORT`,
            `ray://HOST:PORT`; see `ray_cluster.joined`.
        least_s: the least time that a batch has before its process counts as hung.
        progress: told when a cluster has no place yet.

    Raises:
        EncoderError, UsageError: a model cannot be opened on a device.
        FingerprintMismatch: the devices do not compute the same features.
        ClusterFailure: the cluster cannot be reached, or has no room.
    """
    open_models = partial(_Encoding, open_model)
    with (
        placed(devices, open_models, on=on, least_s=least_s) as found,
        DevicePool(found, progress) as pool,
    ):
        yield pool


class _Encoding:
    """An encoder in the process of a device; see `device.Opened`."""

    def __init__(self, open_model: OpenModel, *, device: str) -> None:
        self._encoder = open_model(device=device)
        self.facts = Facts.of(self._encoder)

    def compute(self, batch: Batch) -> Arrays:
        """Arrays of a batch that a store will take."""
        arrays = batch.kept(batch.asked_of(self._encoder)())
        keys, what = raw_keys(list(batch.keys)), batch.modality.removesuffix("s")
        for form in batch.forms:
            check_block(what, form, arrays[form.name], keys)
        return arrays


class DevicePool(ModelPool[Facts]):
    """See `open_devices`; to a run it is described as an encoder is (`steps.Described`)."""

    @property
    def spec(self) -> EncoderSpec:
        """All that decides the numbers."""
        return self.facts.spec

    @property
    def preprocessor(self) -> ImagePreprocessor:
        """What makes pixels of a picture."""
        return self.facts.preprocessor

    @property
    def default_batch_size(self) -> int:
        """Images per batch that suit the first device."""
        return self.facts.default_batch_size

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features the models emit."""
        return self.facts.offered[modality]


@contextmanager
def open_on(
    on: str, encoder: Encoder | DevicePool | str, *, dtype: str = "auto"
) -> Iterator[DevicePool]:
    """The same encoder on all devices of a cluster; `dtype` is for one that is a name.

    Raises:
        UsageError: it is on several devices already.
        FingerprintMismatch: by its name alone another one is opened there.
    """
    if isinstance(encoder, DevicePool):
        raise UsageError("`on` is for an encoder; a pool of devices is where it is")
    if isinstance(encoder, str):
        with open_devices("all", partial(open_encoder, encoder, dtype=dtype), on=on) as pool:
            yield pool
        return
    with open_devices("all", partial(reopen_encoder, encoder.spec), on=on) as pool:
        check_same(pool.facts, Facts.of(encoder), on)
        yield pool
