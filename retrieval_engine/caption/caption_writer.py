"""Files of captions: a journal of whole lines that a killed run goes on with, and its other forms.

The journal is JSON lines, one for each image, written and forced to disk a batch at a time:

    {"image": "a.jpg", "caption": "…", "captions": […], "scores": […], "source": …, "run": …}

`captions` and `matches` are there where there are several, or a judge. `run` names the model and
the settings; a file holds captions of one run only. `.csv` and `.json` (COCO results) files are
made of a journal that lies beside them.
"""

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrieval_engine.caption.caption_run import Captioned, Done
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.durable import replace_file
from retrieval_engine.errors import UsageError, VlreError
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.records import Failure, Json
from retrieval_engine.sources.reading import split_lines

ToRow = Callable[[Captioned, str], dict[str, Any]]
SUFFIXES = (".jsonl", ".csv", ".json")
_COCO = re.compile(r"(?:COCO_\w+_)?(\d{12})")


class CaptionWriter:
    """Captions of one run in a file, which a later run of the same settings goes on with.

    Args:
        path: `.jsonl`, `.csv` or `.json` (COCO results).
        settings: of the run; written beside the file as `NAME.run.json`.
        run: name of the settings.
        overwrite: begin anew.
        to_row: what to write of an image; `image`, `source` and `run` must be in it.

    Attributes:
        done: names of the images that have their captions.

    Raises:
        UsageError: another suffix, or the file holds captions of other settings.
        VlreError: the disk refuses, or another run is writing the file.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Json],
        run: str,
        *,
        overwrite: bool = False,
        to_row: ToRow | None = None,
    ) -> None:
        if path.suffix not in SUFFIXES:
            raise UsageError(
                f"`out={str(path)!r}` ends in {path.suffix or 'nothing'}, must end in "
                f"{', '.join(SUFFIXES)}"
            )
        self.path = path
        self.journal = path if path.suffix == ".jsonl" else path.with_name(path.name + ".jsonl")
        self.ledger = path.with_name(path.name + ".failures.jsonl")
        self._run = run
        self._to_row = to_row or row_of
        self._failures = {} if overwrite else _read_failures(self.ledger)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            self._file = self.journal.open("a+b")
            if overwrite:
                self._file.truncate(0)
            self.done = self._resume()
        except OSError as error:
            raise VlreError(f"cannot write {self.journal}: {error.strerror}") from error
        except UsageError:
            self._close()
            raise
        text = json.dumps({"run": run, **settings}, indent=2, ensure_ascii=False)
        replace_file(path.with_name(path.name + ".run.json"), text.encode() + b"\n")

    def __enter__(self) -> "CaptionWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # it tries once more what `add` has said is not written
            self._file.close()
        self._lock.release(remove=True)

    def _locked(self) -> FileLock:
        try:
            return FileLock(self.journal.with_name(self.journal.name + ".lock"))
        except Taken as error:
            raise VlreError(
                f"{self.journal} is being written by {error.owner}",
                hint="wait for it to end, or write to another file",
            ) from error

    def _resume(self) -> set[str]:
        """Names of the images that are done; what a kill left of a line is cut off."""
        self._file.seek(0)
        done, whole = set(), 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            row = self._row(number, line)
            done.add(f"{row['source']}\t{row['image']}")
            whole += len(line)
        self._file.seek(0, io.SEEK_END)
        if self._file.tell() > whole:
            self._file.truncate(whole)
        return done

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        """A journal line as a row of this run.

        Raises:
            UsageError: it is of another run, or no row of ours: then nothing may be written here.
        """
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not {"image", "source", "run"} <= row.keys():
            raise UsageError(
                f"{self.journal}, line {number}, is no row of captions",
                hint="use another `out`, or `overwrite`",
            )
        if row["run"] != self._run:
            raise UsageError(
                f"{self.journal} holds captions of another model or other settings "
                f"(run {row['run']}, this is {self._run})",
                hint=f"see {self.path.name}.run.json; use another `out`, or `overwrite`",
            )
        return row

    def has(self, image: SourceImage) -> bool:
        """Whether an image has its captions."""
        return image.name in self.done

    def add(self, done: Done) -> None:
        """Append one batch: after this it survives whatever happens.

        Raises:
            VlreError: the disk refuses.
        """
        rows = [self._to_row(captioned, self._run) for captioned in done.captioned]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self._file.write(lines.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise VlreError(f"cannot write {self.journal}: {error.strerror}") from error
        self.done.update(captioned.image.name for captioned in done.captioned)
        before = len(self._failures)
        for captioned in done.captioned:
            self._failures.pop((captioned.image.source, captioned.image.item.id), None)
        self._failures |= {(f.source, f.item_id): f for f in done.failures}
        if done.failures or len(self._failures) != before:
            self._write_failures()

    def _write_failures(self) -> None:
        lines = [json.dumps(asdict(f), ensure_ascii=False) + "\n" for f in self._failures.values()]
        replace_file(self.ledger, "".join(lines).encode())

    def finish(self) -> None:
        """Put the file into its own form, and the ledger away when nothing failed."""
        if not self._failures:
            self.ledger.unlink(missing_ok=True)
        if self.path.suffix == ".csv":
            replace_file(self.path, _csv(self.rows()).encode())
        elif self.path.suffix == ".json":
            results = [
                {"image_id": row.get("image_id", row["image"]), "caption": row["caption"]}
                for row in self.rows()
            ]
            replace_file(self.path, json.dumps(results, ensure_ascii=False).encode())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the journal."""
        with self.journal.open("rb") as file:
            yield from (json.loads(line) for line in file)


def row_of(captioned: Captioned, run: str) -> dict[str, Any]:
    """An image's captions as a row of the journal."""
    image = captioned.image
    row: dict[str, Any] = {"image": image.item.id, "caption": captioned.captions[0]}
    if len(captioned.captions) > 1:
        row["captions"] = list(captioned.captions)
    row["scores"] = [round(score, 5) for score in captioned.scores]
    if captioned.matches:
        row["matches"] = [round(match, 5) for match in captioned.matches]
    number = image_id(image)
    if number is not None:
        row["image_id"] = number
    return {**row, "source": image.source, "uri": image.item.uri, "run": run}


def image_id(image: SourceImage) -> int | None:
    """COCO's number of an image: as its source says, or as its file name does."""
    known = image.item.meta.get("image_id", image.item.meta.get("cocoid"))
    if isinstance(known, int):
        return known
    named = _COCO.fullmatch(Path(image.item.id).stem)
    return int(named[1]) if named else None


def _read_failures(path: Path) -> dict[tuple[str, str], Failure]:
    if not path.exists():
        return {}
    found = {}
    # `splitlines` would cut a line at U+2028, which JSON leaves as it is
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        failure = Failure(**json.loads(line))
        found[failure.source, failure.item_id] = failure
    return found


def _csv(rows: Iterator[dict[str, Any]]) -> str:
    """One line for each image; its other captions are in `caption_2`, `caption_3` and so on."""
    listed = list(rows)
    most = max((len(row.get("captions", ())) for row in listed), default=0)
    more = [f"caption_{number}" for number in range(2, most + 1)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "caption", *more, "score", "source"])
    for row in listed:
        others: Sequence[str] = row.get("captions", [row["caption"]])[1:]
        writer.writerow([row["image"], row["caption"], *others, row["scores"][0], row["source"]])
    return out.getvalue()


class TextFiles:
    """A `.txt` beside each image, one caption on a line. A file that is there is never touched.

    Nothing is written outside the folder that the image's source was given, whatever an
    annotation or a link says.

    Attributes:
        kept: number of images whose `.txt` was there already.
        outside: number of images that lie outside that folder.
    """

    def __init__(self) -> None:
        self.kept = self.outside = 0

    def has(self, image: SourceImage) -> bool:
        """Whether there is nothing to write for an image: its text file is there, or forbidden.

        Raises:
            UsageError: the image is no file of its own.
        """
        path = self._path(image)
        inside = _is_inside(path, image.home)
        self.outside += not inside
        return not inside or os.path.lexists(path)

    def add(self, done: Done) -> None:
        """Write the files of one batch."""
        for captioned in done.captioned:
            path = self._path(captioned.image)
            if os.path.lexists(path):
                self.kept += 1
            elif not _is_inside(path, captioned.image.home):
                self.outside += 1
            else:
                lines = [" ".join(split_lines(caption)) for caption in captioned.captions]
                replace_file(path, ("\n".join(lines) + "\n").encode())

    def _path(self, image: SourceImage) -> Path:
        path = Path(image.item.uri)
        if not path.is_absolute():  # scenes:…, parquet:…
            raise UsageError(
                f"`txt_beside`: {image.item.uri} is no file of its own",
                hint="use `out` for images that are not files",
            )
        return path.with_suffix(".txt")


def _is_inside(path: Path, home: Path | None) -> bool:
    """Whether a file would lie in a folder when all links on the way are followed."""
    return home is not None and path.parent.resolve().is_relative_to(home.resolve())
