"""What is made here goes to the hub and comes back: `huggingface_hub` does the talking.

push:  what is it -> is it whole -> card and, of a store, Parquet -> one commit
pull:  files -> is it whole
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_engine.errors import HubFailure, UsageError
from retrieval_engine.hub.card import CARD, write_card
from retrieval_engine.hub.data_set import FOLDER, write_data_set
from retrieval_engine.hub.kinds import Kind, check, files_of, inside, kind_of
from retrieval_engine.machine import cache_folder
from retrieval_engine.network import TOKEN_HINT, endpoint, explaining, hub_is_reachable
from retrieval_engine.records import Json
from retrieval_engine.store import open_store

_OURS = ("shards/", "data/", "data-")  # of a store or an index: what is not pushed again is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a push would send.

    Attributes:
        kind: what it is.
        repo: `USER/NAME`.
        files: by their names in the repository.
        inside: what others learn from it, a line each.
    """

    kind: Kind
    repo: str
    files: Mapping[str, Path]
    inside: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.files.values())

    def to_json(self) -> dict[str, Json]:
        """What would be sent, as one JSON object."""
        return {
            "repo": self.repo,
            "kind": str(self.kind),
            "repo_type": self.kind.repo_type,
            "files": len(self.files),
            "bytes": self.size_bytes,
            "inside": list(self.inside),
        }

    def write(self, to: Path) -> None:
        """Write it all into a folder, by links where the file system can.

        Raises:
            UsageError: the folder holds something.
        """
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise UsageError(f"{to} is not empty", hint="give another `to`")
        for name, file in self.files.items():
            place = to / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), place)
            except OSError:
                shutil.copyfile(file, place)


@contextmanager
def prepared(folder: str | Path, repo: str) -> Iterator[Prepared]:
    """What a push of a folder would send; it is there as long as the block runs.

    Args:
        folder: of a checkpoint, adapter, head, index or store.
        repo: `USER/NAME` that the card speaks of.

    Raises:
        UsageError: the folder holds nothing of the kind, or the name is none that the hub allows.
        VlreError: it is damaged.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    folder = Path(folder)
    with explaining(repo):
        validate_repo_id(repo)
    if repo.count("/") != 1:
        raise UsageError(f"{repo!r} is no name on the hub: it must be USER/NAME")
    kind = kind_of(folder)
    check(kind, folder)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="push-") as made:
        known, configs = tuple(inside(kind, folder)), []
        files = dict(files_of(kind, folder))
        if kind is Kind.STORE:
            configs = write_data_set(open_store(folder), Path(made))
            tables = sorted((Path(made) / FOLDER).rglob("*.parquet"))
            files |= {file.relative_to(made).as_posix(): file for file in tables}
        files[CARD] = Path(made) / CARD
        text = write_card(kind, folder, repo, inside=known, configs=configs)
        files[CARD].write_text(text, encoding="utf-8")
        yield Prepared(kind=kind, repo=repo, files=files, inside=known)


def push(what: Prepared, *, private: bool | None = None, message: str = "") -> str:
    """Send it to the hub in one commit.

    Sent again after an interruption, it goes on: what the hub has is not sent twice. Shards and
    tables of an earlier push that are no more are taken out.

    Args:
        what: from `prepared`.
        private: whether a new repository is private; None for those that tell of somebody's
            pictures (stores, indexes).
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        HubFailure: no token, or the hub refuses or is out of reach, or the repository is public and
            it is not said that such a thing may be.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not get_token():
        raise HubFailure("there is no token for the hub", hint=TOKEN_HINT)
    _refuse_silence()
    api, repo, repo_type = HfApi(endpoint=endpoint()), what.repo, what.kind.repo_type
    hidden = what.kind.knows_items if private is None else private
    with explaining(repo):
        address = api.create_repo(repo, repo_type=repo_type, private=hidden, exist_ok=True)
        is_public = not api.repo_info(repo, repo_type=repo_type).private
        if hidden and is_public:
            raise HubFailure(
                f"{repo} is public and tells of your pictures: {what.inside[0]}"
                if private is None
                else f"{repo} is there and is public",
                hint="push with `private=False` if everybody may know, or to another repository",
            )
        there = api.list_repo_files(repo, repo_type=repo_type)
        gone = [name for name in there if name.startswith(_OURS) and name not in what.files]
        operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in gone]
        operations += [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
            for name, file in what.files.items()
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the client: Parquet in a model; its own old calls
            api.create_commit(
                repo,
                operations,
                commit_message=message or f"Push {what.kind} with vlre",
                repo_type=repo_type,
            )
    return str(address)


def pull(name: str, to: str | Path | None = None) -> Path:
    """Bring back what was pushed, and make sure that it is whole.

    What is there already, of a pull that was interrupted or of an earlier state, is not fetched again.

    Args:
        name: `USER/NAME`, perhaps with `@REVISION`.
        to: directory; NAME by default.

    Returns:
        The directory.

    Raises:
        UsageError: the directory holds something else, or the name is none.
        HubFailure: the hub has no such thing, refuses or is out of reach.
        VlreError: what came is damaged.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    folder = Path(to or repo.rpartition("/")[2])
    begun = folder / ".cache" / "huggingface"
    if folder.exists() and any(folder.iterdir()) and not begun.is_dir():
        raise UsageError(f"{folder} is not empty", hint="give another `to`")
    _refuse_silence()
    with explaining(repo):
        repo_type = _type_of(repo, revision)
        snapshot_download(
            repo,
            repo_type=repo_type,
            revision=revision or None,
            local_dir=folder,
            ignore_patterns=[".gitattributes", f"{FOLDER}/*"],  # a store's tables are its shards'
            endpoint=endpoint(),
        )
    try:
        kind = kind_of(folder)
    except UsageError as error:
        raise HubFailure(
            f"{repo} holds no checkpoint, adapter, head, index or store; what it holds is in {folder}",
            hint=f"a data set to encode is a source: hf:{repo}" if repo_type == "dataset" else "",
        ) from error
    check(kind, folder)
    return folder


def _type_of(repo: str, revision: str) -> str:
    """Whether the hub has a model or a data set of this name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = HfApi(endpoint=endpoint())
    try:
        api.repo_info(repo, revision=revision or None)
    except GatedRepoError:
        return "model"
    except RepositoryNotFoundError:
        api.repo_info(repo, repo_type="dataset", revision=revision or None)
        return "dataset"
    return "model"


def _refuse_silence() -> None:
    if not hub_is_reachable():
        raise HubFailure(
            f"the hub ({endpoint()}) cannot be reached", hint="try again when there is network"
        )
