"""`vlre encode --only-stale`: stored features again, where a changed model made them stale."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.cli.encode_summary import tell
from retrieval_engine.cli.output import progress_bar

if TYPE_CHECKING:
    from retrieval_engine.encoding import EncodeReport


def renew(store: Path, given: dict[str, Any]) -> "EncodeReport":
    """Make a store a model's own, and print the report.

    Args:
        store: directory of the store.
        given: model, adapter, device, dtype, batch_size, workers and as_json of the command.
    """
    from retrieval_engine.encoding import encode_stale
    from retrieval_engine.models.captioner import open_tower

    model, adapter = given["model"], given["adapter"]
    # A captioning checkpoint will do too: its vision tower may be all that is stale.
    encoder = open_tower(model, device=given["device"], dtype=given["dtype"], adapter=adapter)
    batch_size, workers = given["batch_size"] or 0, given["workers"] or 0
    with progress_bar() as progress:
        report = encode_stale(
            store, encoder, batch_size=batch_size, workers=workers, progress=progress
        )
    tell(report, as_json=given["as_json"])
    return report
