"""`vlre import-embeddings`: vectors of any other encoder into a store."""

from pathlib import Path

import click

from retrieval_engine.cli.options import UserPath, example, json_option, store_option

_HELP = """Bring in vectors of another encoder (CLIP, SigLIP, ...): search, recall and heads work.

Files are .npy, .npz or .parquet; of the latter two FILE:COLUMN names the column. FOLDER is what
clip-retrieval writes (img_emb/, text_emb/, metadata/). Image and text vectors may have different
widths: recall and search then need a head.
"""


@click.command(
    help=_HELP,
    epilog=example("vlre import-embeddings --images A.npy --texts B.npy --pairs P.npy --name clip"),
)
@click.argument("folder", required=False, type=UserPath())
@click.option("--images", help="Image vectors, [n, width].")
@click.option("--texts", help="Text vectors, [m, width].")
@click.option("--pairs", help="P[j] = image row of text j; without it text j is of image j.")
@click.option("--ids", help="An id for each image, also .txt; default: made from the vector.")
@click.option("--captions", help="The sentence of each text, also .txt.")
@click.option("--uris", help="Where each picture is, also .txt.")
@click.option(
    "--name",
    default="external",
    show_default=True,
    help="Of the encoder; decides the fingerprint: heads serve every import of the same name.",
)
@click.option("--split", default="", help="Split of all these images.")
@store_option
@click.option("--overwrite", is_flag=True, help="Begin a new store in place of the one there.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    folder: Path | None,
    images: str | None,
    name: str,
    split: str,
    store: Path,
    overwrite: bool,
    as_json: bool,
    **others: str | None,
) -> None:
    """Parse, import, print."""
    from retrieval_engine.cli.output import emit, note, progress_bar
    from retrieval_engine.encoding import import_embeddings, read_clip_retrieval, read_embeddings
    from retrieval_engine.errors import UsageError

    if (folder is None) == (images is None):
        raise UsageError(
            "give a FOLDER or --images, not both" if folder else "nothing to import",
            hint="vlre import-embeddings --images A.npy --texts B.npy --pairs P.npy",
        )
    if folder is not None:
        if any(others.values()):
            raise UsageError("a FOLDER brings texts, ids and captions along: name it alone")
        embeddings = read_clip_retrieval(folder)
    else:
        embeddings = read_embeddings(images or "", **others)
    with progress_bar() as progress:
        report = import_embeddings(
            embeddings, store, name=name, split=split, overwrite=overwrite, progress=progress
        )
    for remark in report.remarks:
        note(remark)
    if ctx.get_parameter_source("name") is click.core.ParameterSource.DEFAULT:
        note(f"no --name: the encoder is called {name!r}, like that of every import without one")
    if report.text_width and "itc" not in report.features:
        note(
            f"images have {report.image_width} dimensions, texts {report.text_width}: recall and "
            f"search need a head: vlre train-head --store {store} --out DIR"
        )
    if as_json:
        emit(report.to_json())
    else:
        click.echo(
            f"{report.images:,} images and {report.captions:,} captions of {report.name} in "
            f"{report.store}, as {' and '.join(report.features)}, in {report.seconds:.1f} s"
        )
