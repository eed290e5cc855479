"""Turns checkpoints of BLIP's and LAVIS's own code (.pth) into Hugging Face directories."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedConfig

from retrieval_engine.errors import CheckpointInvalid, CheckpointNotFound, UsageError
from retrieval_engine.models import import_files as files
from retrieval_engine.models.family import FAMILIES, load_family
from retrieval_engine.models.import_names import Translation, check, unknown
from retrieval_engine.models.import_settings import Settings, read_settings
from retrieval_engine.models.import_shapes import Tensors, interpolate, patches_of
from retrieval_engine.network import hub_is_reachable
from retrieval_engine.strict_json import loads

DEFAULT_VOCABULARY = "google-bert/bert-base-uncased"
_POSITIONS = "vision_model.embeddings.position_embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCheckpoint:
    """What an import made. The same is in the directory's `vlre-import.json`.

    Attributes:
        kind: what the file was recognised as, e.g. `blip-retrieval`.
        models: transformers classes that load the directory.
        source: name of the file.
        source_sha256: of its bytes.
        parameters: numbers in all tensors that were kept.
        image_size: side of the model's images in pixels.
        stored_image_size: side that the position embedding in the file is for.
        vocabulary_size: rows of the word embeddings.
        temperature: `temp` of the contrastive loss, or None.
        dropped: by rule, the authors' names of what was left out.
        heads: attention heads, which shapes do not tell, of the vision tower and the text side.
        notes: what a reader should know, one line each.
    """

    kind: str
    models: list[str]
    source: str
    source_sha256: str
    parameters: int
    image_size: int
    stored_image_size: int
    vocabulary_size: int
    temperature: float | None
    dropped: dict[str, list[str]]
    heads: dict[str, int]
    notes: list[str]


def import_checkpoint(
    file: Path,
    out: Path,
    *,
    config: Path | None = None,
    vocab: Path | None = None,
    image_size: int | None = None,
    vision: Path | None = None,
) -> ImportedCheckpoint:
    """Turn an original .pth checkpoint into a directory that transformers and `vlre` load.

    Recognised by their keys: BLIP retrieval, captioning and pre-training, and LAVIS's BLIP-2
    Q-Former. The architecture is read from the tensors' shapes; nothing pickled is run. The
    numbers are those of the authors' code: float for float the tensors of the file, in the
    dtypes they have there.

    Args:
        file: the checkpoint as the authors' code saved it.
        out: directory to make; it exists only when it is whole.
        config: JSON with what shapes do not tell (see `import_settings.py`).
        vocab: vocab.txt; None for the one beside the file, else bert-base-uncased's.
        image_size: side in pixels to interpolate the position embedding for.
        vision: a BLIP-2 vision tower's own file, for checkpoints saved without it.

    Raises:
        CheckpointInvalid: the file is damaged, holds code, is of no known kind, or tensors are
            missing, unexpected or of other shapes than they must be.
        CheckpointNotFound: the default vocabulary is not to be had.
        UsageError: an option contradicts the checkpoint, or `out` exists.
    """
    files.check_free(out)
    options = read_settings(config)
    tensors = files.read_tensors(file)
    found = _translate(tensors, files.read_tensors(vision) if vision else None, options)
    stored_image_size = found.config.vision_config.image_size
    found = _resize(found, image_size or options.top.get("image_size") or stored_image_size)
    check(found)
    beside = file.with_name("vocab.txt")
    tokenizer, text = _fit_vocabulary(found, vocab or (beside if beside.is_file() else None))
    report = ImportedCheckpoint(
        kind=found.kind,
        models=[model.__name__ for model in found.models],
        source=file.name,
        source_sha256=files.sha256_of(file),
        parameters=sum(tensor.numel() for tensor in found.tensors.values()),
        image_size=found.config.vision_config.image_size,
        stored_image_size=stored_image_size,
        vocabulary_size=text.vocab_size,
        temperature=found.temperature,
        dropped={rule: names for rule, names in found.dropped.items() if names},
        heads={
            "vision": found.config.vision_config.num_attention_heads,
            "text": text.num_attention_heads,
        },
        notes=found.notes,
    )
    files.write_directory(found, tokenizer, asdict(report), out)
    return report


def imported_beside(file: Path) -> Path:
    """The directory of an authors' file: imported before, or now, beside it and under its name.

    A .json beside the file and of its name is its `config`.

    Raises:
        UsageError: the directory was made from another file.
        CheckpointInvalid, CheckpointNotFound: as of `import_checkpoint`.
    """
    out = file.with_suffix("")
    record = out / files.RECORD
    if record.is_file():
        if loads(record.read_bytes())["source_sha256"] == files.sha256_of(file):
            return out
        raise UsageError(
            f"{out} was imported from another {file.name}",
            hint="import this one to a place of its own: `import_checkpoint(file, out=DIR)`",
        )
    config = file.with_suffix(".json")
    import_checkpoint(file, out, config=config if config.is_file() else None)
    return out


def _translate(tensors: Tensors, tower: Tensors | None, options: Settings) -> Translation:
    """The checkpoint as the first family has it that recognises its tensors' names."""
    parts = {name.split(".")[0] for name in tensors}
    for name in FAMILIES.names():
        family: Any = load_family(name)
        if hasattr(family, "recognise") and (kind := family.recognise(parts)):
            found: Translation = family.translate(tensors, kind, options, tower)
            return found
    raise unknown(parts)


def _resize(found: Translation, image_size: int) -> Translation:
    vision = found.config.vision_config
    side = patches_of(image_size, vision.patch_size)
    old = found.tensors[_POSITIONS]
    vision.image_size = image_size
    return replace(found, tensors={**found.tensors, _POSITIONS: interpolate(old, side)})


def _fit_vocabulary(
    found: Translation, vocab: Path | None
) -> tuple[BertTokenizer, PreTrainedConfig]:
    """The tokenizer, and the text side's config with its ids written in."""
    text = getattr(found.config, "qformer_config", None) or found.config.text_config
    tokenizer = build_tokenizer(vocab, text.vocab_size, found.special_tokens)
    text.pad_token_id = tokenizer.pad_token_id
    text.bos_token_id = tokenizer.bos_token_id
    text.sep_token_id = text.eos_token_id = tokenizer.sep_token_id
    return tokenizer, text


def build_tokenizer(vocab: Path | None, rows: int, special_tokens: Sequence[str]) -> BertTokenizer:
    """BERT's uncased tokenizer with the authors' tokens at its end.

    Trap: `BertTokenizer(vocab_file=...)` of transformers 5 silently ignores the file.

    Args:
        vocab: vocab.txt, one WordPiece a line; None for bert-base-uncased's, which BLIP and
            LAVIS use.
        rows: of the checkpoint's word embeddings: the vocabulary must be that large.
        special_tokens: appended in order unless the file has them; the first is `bos_token`.

    Raises:
        UsageError: the file cannot be read.
        CheckpointNotFound: none was given and bert-base-uncased's is not to be had.
        CheckpointInvalid: the vocabulary has another size than the embeddings.
    """
    file = vocab or _default_file()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`vocab={str(file)!r}` cannot be read: {error}") from error
    words = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    tokens = [*words, *(token for token in special_tokens if token not in words)]
    if len(tokens) != rows or len(set(tokens)) != rows:
        added = " + ".join(token for token in special_tokens if token not in words)
        raise CheckpointInvalid(
            f"the checkpoint's word embeddings have {rows} rows; {file.name} has {len(words)} "
            f"words ({len(set(tokens))} different ones with {added or 'none'} added)",
            hint="give the vocab.txt the checkpoint was trained with: `vocab=FILE`",
        )
    tokenizer = BertTokenizer(vocab={t: n for n, t in enumerate(words)}, do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": special_tokens[0]})
    for token in special_tokens[1:]:
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    return tokenizer


def _default_file() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(
                DEFAULT_VOCABULARY, "vocab.txt", local_files_only=not hub_is_reachable()
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointNotFound(
            f"no vocabulary: {DEFAULT_VOCABULARY} is not on this machine and the hub cannot be reached",
            hint="give BERT's uncased vocabulary (30,522 lines): `vocab='vocab.txt'`",
        ) from error
