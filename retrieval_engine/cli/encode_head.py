"""`vlre encode --head`: what a head makes of stored features; no model is run."""

from pathlib import Path

import click

from retrieval_engine.cli.output import emit, progress_bar


def project(store: Path, head: Path, *, as_json: bool) -> None:
    """Write what a head makes of a store's features beside them, and say how much that was."""
    from retrieval_engine.encoding.projected import project_store
    from retrieval_engine.heads import load_head

    with progress_bar() as progress:
        report = project_store(store, load_head(head), progress=progress)
    if as_json:
        emit(report.to_json())
    else:
        click.echo(
            f"{report.feature}: {report.images:,} images and {report.captions:,} captions of "
            f"{report.store} in {report.seconds:.1f} s"
        )
