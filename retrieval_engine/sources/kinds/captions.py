"""`captions:FILE?images=DIR`: a caption file in any common form, and a folder of pictures.

    captions:pairs.csv?images=photos
    captions:Flickr8k.token.txt?images=Images&allow_missing=true

    captions:export.csv?image=Datei&caption=Titel,Alt        columns by name

The forms are those of `caption_files.py`: `name|caption`, `name,caption` with or without a header,
`name.jpg#0<TAB>caption`, JSON lines, a JSON list or a JSON object by image. Names are relative to
the image folder; a column or key `split` is the item's split, all others are metadata.
"""

from collections.abc import Mapping
from functools import partial

from retrieval_engine.sources.annotated import OPTIONS, AnnotatedImages
from retrieval_engine.sources.annotation import Fields
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.sources.source_name import Options, existing_file, named_place


def open_source(argument: str, options: Mapping[str, str]) -> AnnotatedImages:
    """Images and captions of a caption file.

    Args:
        argument: path of the file.
        options: `images` (default: the file's folder), `split`, `captions`, `allow_missing`;
            `image` and `caption` (names with commas): columns or keys.

    Raises:
        UsageError: an option is unknown.
        SourceError: the file or the images are not there, or a line makes no sense.
    """
    given = Options("captions", options, (*OPTIONS, "image", "caption"))
    captions = tuple(name.strip() for name in given.text("caption").split(",") if name.strip())
    fields = Fields(image=given.text("image"), captions=captions)
    path = existing_file(named_place(argument))
    return AnnotatedImages(
        name=f"captions:{path}",
        given=given,
        images=path.parent,
        records=partial(read_records, path, fields),
    )
