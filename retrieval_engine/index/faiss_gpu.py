"""The heavy steps of building a faiss index on a GPU.

k-means and finding the list of each row are products of the rows with all centroids. They are done
by a copy of the coarse quantiser that lies on the GPU; rows go there block by block. The index
itself stays in the memory of the CPU, so that it may be larger than the GPU's, is written as ever,
and is searched where there is none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from retrieval_engine.index.faiss_parameters import import_faiss

Copy: TypeAlias = Callable[[Any], Any]
"""Makes an index of faiss elsewhere out of one: on a GPU."""


def gpu_copier(device: str) -> tuple[Copy | None, str]:
    """What moves an index to a device.

    Args:
        device: `cpu`, or `cuda` with or without a number.

    Returns:
        None for the CPU, and where this faiss knows no GPU; and then a line for people.
    """
    if device == "cpu":
        return None, ""
    faiss, number = import_faiss(), int(device.partition(":")[2] or 0)
    if not hasattr(faiss, "StandardGpuResources") or number >= faiss.get_num_gpus():
        return None, (
            f"this faiss ({faiss.__version__}) cannot use {device}: lists are made on the CPU, exact "
            "search runs on the GPU; the extra `gpu` in place of `cpu` has a faiss that can"
        )
    resources = faiss.StandardGpuResources()
    return lambda index: faiss.index_cpu_to_gpu(resources, number, index), ""


@contextmanager
def coarse_steps_by(copy: Copy | None, index: Any) -> Iterator[None]:
    """Within the block an inverted file is trained, and finds lists, by a copy of its quantiser.

    Args:
        copy: makes the copy; None changes nothing.
        index: of any kind; one without lists is left alone.
    """
    faiss = import_faiss()
    ivf = None if copy is None else faiss.try_extract_index_ivf(index)
    if copy is None or ivf is None:
        yield
        return
    own = ivf.quantizer
    if ivf.is_trained:
        copied = copy(faiss.downcast_index(own))
        ivf.quantizer = copied
    else:
        copied = copy(faiss.IndexFlat(ivf.d, ivf.metric_type))
        ivf.clustering_index = copied
    try:
        yield
    finally:
        ivf.quantizer, ivf.clustering_index = own, None
