"""A hub on 127.0.0.1 that speaks the part of the protocol that pushing and pulling needs."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.loopback import serving

TOKEN = "hf_right"
READ_TOKEN = "hf_reads"
REPO = r"(?P<repo>[^/]+/[^/]+)"


@dataclass
class Repo:
    """One repository: the files of every commit, and who may see them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.commit({}, "initial commit")

    def commit(self, files: dict[str, bytes], message: str) -> str:
        """A new state; its name."""
        sha = hashlib.sha1(f"{len(self.commits)} {message} {self!r}"[:4000].encode()).hexdigest()
        self.commits[sha] = files
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """Name and files of a state."""
        sha = revision if revision in self.commits else list(self.commits)[-1]
        return sha, self.commits[sha]


@dataclass
class Hub:
    """What the server keeps, and what it was asked for.

    Attributes:
        refuse_blobs_after: answer 400 to every blob after so many; None takes them all.
    """

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refuse_blobs_after: int | None = None
    url: str = ""

    def files(self, repo: str, kind: str = "models") -> dict[str, bytes]:
        """The files of a repository as they are now."""
        return self.repos[kind, repo].at("main")[1]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def directory(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(b"")}


def is_large(name: str, size: int) -> bool:
    return size > 100_000 or not name.endswith((".json", ".md", ".txt", ".jsonl"))


class Handler(BaseHTTPRequestHandler):
    """One request; `self.hub` is set by `served_hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, said in headers.items():
            self.send_header(name.replace("_", "-"), said)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_any(self) -> None:
        path, data = unquote(urlsplit(self.path).path), self.body()
        self.hub.asked.append(f"{self.command} {path}")
        if self.token not in ("", TOKEN, READ_TOKEN):
            return self.refuse(401, "", "Invalid username or password.")
        for method, pattern, act in ROUTES:
            if (found := re.fullmatch(pattern, path)) and self.command in method:
                if method in ("POST", "PUT") and self.token != TOKEN and act is not Handler.blob:
                    return self.refuse(403, "", "This token reads and does not write.")
                act(self, data, **found.groupdict())
                return None
        return self.refuse(404, "", f"no such place: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def repository(self, kind: str, repo: str) -> Repo | None:
        found = self.hub.repos.get((kind or "models", repo))
        if found is None or (found.private and not self.token):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    # What is asked

    def create(self, data: bytes) -> None:
        said = json.loads(data)
        key = f"{said.get('type', 'model')}s", f"{said['organization']}/{said['name']}"
        prefix = "" if key[0] == "models" else f"{key[0]}/"
        there = {"url": f"{self.hub.url}/{prefix}{key[1]}"}
        if key in self.hub.repos:
            return self.answer({**there, "error": "You already created this repo"}, 409)
        self.hub.repos[key] = Repo(private=said.get("visibility") == "private")
        return self.answer(there)

    def info(self, data: bytes, kind: str, repo: str, revision: str = "main") -> None:
        if found := self.repository(kind, repo):
            sha, files = found.at(revision)
            names = [{"rfilename": name} for name in sorted(files)]
            self.answer({"id": repo, "sha": sha, "private": found.private, "siblings": names})

    def listed(self, repo: Repo, files: dict[str, bytes]) -> list[dict[str, Any]]:
        entries = []
        for name, content in sorted(files.items()):
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            if name in repo.large:
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    def tree(
        self, data: bytes, kind: str, repo: str, revision: str, under: str | None = None
    ) -> None:
        if not (found := self.repository(kind, repo)):
            return
        start = f"{under}/" if under else ""
        files = {n: d for n, d in found.at(revision)[1].items() if n.startswith(start)}
        if "recursive=true" not in self.path.lower():
            inner = {n: n.removeprefix(start).partition("/") for n in files}
            folders = sorted({f"{start}{at}" for at, deeper, _ in inner.values() if deeper})
            files = {n: d for n, d in files.items() if not inner[n][1]}
        else:
            folders = []
        self.answer([*self.listed(found, files), *map(directory, folders)])

    def paths(self, data: bytes, kind: str, repo: str, revision: str) -> None:
        if found := self.repository(kind, repo):
            files = found.at(revision)[1]
            asked = json.loads(data)["paths"]
            said = self.listed(found, {n: d for n, d in files.items() if n in asked})
            folders = [p for p in asked if any(n.startswith(f"{p}/") for n in files)]
            self.answer([*said, *map(directory, folders)])

    def preupload(self, data: bytes, kind: str, repo: str, revision: str) -> None:
        if found := self.repository(kind, repo):
            files, said = found.at(revision)[1], []
            for file in json.loads(data)["files"]:
                name = file["path"]
                large = is_large(name, file["size"])
                entry = {"path": name, "uploadMode": "lfs" if large else "regular"}
                if name in files:
                    content = files[name]
                    sha = hashlib.sha256(content).hexdigest()
                    entry["oid"] = sha if large else git_oid(content)
                said.append({**entry, "shouldIgnore": False})
            self.answer({"files": said})

    def batch(self, data: bytes, kind: str, repo: str) -> None:
        objects = []
        for entry in json.loads(data)["objects"]:
            put = {"upload": {"href": f"{self.hub.url}/lfs/objects/{entry['oid']}"}}
            has = entry["oid"] in self.hub.blobs
            objects.append(entry if has else {**entry, "actions": put})
        self.answer({"transfer": "basic", "objects": objects})

    def blob(self, data: bytes, oid: str) -> None:
        least = self.hub.refuse_blobs_after
        if least is not None and len(self.hub.blobs) >= least:
            return self.refuse(400, "", "the disk of the hub is full")
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.blobs[oid] = data
        self.hub.sent.append(oid)
        return self.answer({})

    def commit(self, data: bytes, kind: str, repo: str, revision: str) -> None:
        found = self.repository(kind, repo)
        if not found:
            return
        lines = [json.loads(line) for line in data.splitlines()]
        files = dict(found.at(revision)[1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
                found.large.add(value["path"])
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        sha = found.commit(files, lines[0]["value"]["summary"])
        self.answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def resolve(self, data: bytes, kind: str | None, repo: str, revision: str, name: str) -> None:
        if not (found := self.repository((kind or "models/").rstrip("/"), repo)):
            return None
        sha, files = found.at(revision)
        if name not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content = files[name]
        etag = hashlib.sha256(content).hexdigest() if name in found.large else git_oid(content)
        headers: dict[str, Any]
        headers = {"X_Repo_Commit": sha, "ETag": f'"{etag}"', "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(content, **headers)
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content) - 1), len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.answer(content[first : last + 1], 206, **headers)

    def yaml(self, data: bytes) -> None:
        self.answer({"errors": [], "warnings": []})


_API = rf"/api/(?P<kind>models|datasets)/{REPO}"
_AT = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.yaml),
    ("GET", _API, Handler.info),
    ("GET", rf"{_API}/revision/{_AT}", Handler.info),
    ("GET", rf"{_API}/tree/{_AT}(/(?P<under>.+))?", Handler.tree),
    ("POST READS", rf"{_API}/paths-info/{_AT}", Handler.paths),
    ("POST", rf"{_API}/preupload/{_AT}", Handler.preupload),
    ("POST", rf"{_API}/commit/{_AT}", Handler.commit),
    ("POST", rf"/(?P<kind>datasets/)?{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/objects/(?P<oid>\w+)", Handler.blob),
    ("GET HEAD", rf"/(?P<kind>datasets/)?{REPO}/resolve/{_AT}/(?P<name>.+)", Handler.resolve),
]


@contextmanager
def served_hub() -> Iterator[Hub]:
    """A hub that is there as long as the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    with serving(server) as hub.url:
        yield hub
