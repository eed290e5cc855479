"""What hostile and careless clients send: each gets its refusal, no other's answer changes."""

import base64
import io
import json
import logging
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from retrieval_engine.errors import UsageError
from retrieval_engine.serve import ServeSettings
from retrieval_engine.serve.figures import Figures
from retrieval_engine.serve.guard import Guard, _Rates
from retrieval_engine.serve.log import JsonLines
from tests.serving import PATIENCE_S, make_store, served

TOKEN = "a-token-of-the-test"
POST = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("limits"), 8)


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[httpx.Client]:
    with served(store, max_body_bytes=200_000, timeout_s=PATIENCE_S, max_pixels=1_000_000) as made:
        yield made


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def raw(client: httpx.Client, data: bytes, *, within_s: float = PATIENCE_S) -> bytes:
    """What comes back for these bytes until the server closes."""
    address = (str(client.base_url.host), int(client.base_url.port or 0))
    with socket.create_connection(address, timeout=within_s) as line:
        line.sendall(data)
        found = b""
        while part := line.recv(65536):
            found += part
    return found


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_only_with_a_token_do_other_machines_come_in() -> None:
    with pytest.raises(UsageError, match="lets other machines in, and there is no `token`"):
        ServeSettings(host="0.0.0.0")
    with pytest.raises(UsageError, match="at least 8"):
        ServeSettings(token="short")
    for rate in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="must be a number from 0 on"):
            ServeSettings(rate=rate)
    with pytest.raises(UsageError, match="`timeout_s` is 0, must be above 0"):
        ServeSettings(timeout_s=0)
    assert ServeSettings(host="0.0.0.0", token=TOKEN).requests_per_s == 50
    assert ServeSettings().requests_per_s == 0
    assert ServeSettings(host="::1").is_loopback


def test_a_token_is_asked_for_everywhere_but_on_the_page(store: Path) -> None:
    with served(store, token=TOKEN) as client:
        assert client.post("/api/search", json={"text": "a dog"}).status_code == 200
        with httpx.Client(base_url=client.base_url) as stranger:
            for path in ("/", "/docs", "/static/page.js", "/healthz", "/openapi.json"):
                assert stranger.get(path).status_code == 200, path
            for path in ("/api/store", "/metrics", "/api/items/x/image", "/v1/embeddings"):
                assert code(stranger.get(path)) == (401, "unauthorized"), path
            for wrong in ("", "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \xff"):
                headers = {"Authorization": wrong.encode("latin-1")}
                assert stranger.get("/api/store", headers=headers).status_code == 401  # type: ignore[arg-type]
            assert stranger.post("/session").status_code == 401
            answer = stranger.post("/session", headers={"Authorization": f"Bearer {TOKEN}"})
            assert "httponly; path=/; samesite=strict" in answer.headers["set-cookie"].lower()
            assert stranger.get("/api/store").status_code == 200


def test_foreign_names_and_foreign_pages_are_refused(client: httpx.Client) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", ""):
        assert code(client.get("/readyz", headers={"Host": host})) == (421, "wrong_host"), host
    assert client.get("/readyz", headers={"Host": "localhost:1234"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        asked = client.post("/api/search", json={"text": "a"}, headers={"Origin": origin})
        assert code(asked) == (403, "cross_site"), origin
    own = {"Origin": str(client.base_url).rstrip("/")}
    answer = client.post("/api/search", json={"text": "a"}, headers=own)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_large_bodies_end(client: httpx.Client) -> None:
    large = b'{"text": "' + b"a" * 300_000 + b'"}'
    json_type = {"Content-Type": "application/json"}
    assert code(client.post("/api/search", content=large, headers=json_type)) == (413, "too_large")
    parts = (large[i : i + 50_000] for i in range(0, len(large), 50_000))  # without a length
    assert code(client.post("/api/search", content=parts, headers=json_type)) == (413, "too_large")
    assert b" 400 " in raw(client, POST + b"X: " + b"a" * 40_000).split(b"\r\n")[0]


def test_slow_bodies_end(store: Path) -> None:
    with served(store, timeout_s=0.5) as client:
        start = time.monotonic()
        assert b"408" in raw(client, POST + b'Content-Length: 30\r\n\r\n{"te').split(b"\r\n")[0]
        assert raw(client, b"GET /readyz HTTP/1.1\r\nHo") == b""  # a head that never ends
        assert time.monotonic() - start < PATIENCE_S


def test_a_client_that_sends_its_whole_body_first_reads_the_refusal(client: httpx.Client) -> None:
    address = (str(client.base_url.host), int(client.base_url.port or 0))
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600000\r\n\r\n"
    with socket.create_connection(address, timeout=PATIENCE_S) as line:
        line.sendall(head)
        for _ in range(6):
            time.sleep(0.05)
            line.sendall(b"a" * 100_000)
        assert b" 413 " in line.recv(65536).split(b"\r\n")[0]


def test_too_many_in_a_second_are_refused(store: Path) -> None:
    with served(store, rate=1) as client:
        answers = [client.get("/openapi.json") for _ in range(60)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"


def test_who_comes_too_early_again_and_again_comes_in_now_and_then() -> None:
    rates = _Rates(0.5)  # two and a half at once
    assert [rates.admit("a", now) for now in range(8)] == [True] * 4 + [False, True] * 2


def test_images_that_lie_about_their_size_are_not_decoded(client: httpx.Client) -> None:
    for width, height in [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (2_000, 2_000), (0, 5)]:
        sent = client.post("/api/search", files={"image": ("a.png", bomb(width, height))})
        assert code(sent) == (400, "bad_image"), (width, height)


def hostile(rng: random.Random) -> tuple[str, str, dict[str, object]]:
    """A request that means harm, or nothing."""
    junk = rng.randbytes(rng.randrange(2_000))
    json_type = {"Content-Type": "application/json"}
    body: bytes = rng.choice(
        [
            b"[" * 50_000,
            b'{"text":' * 20_000,
            b'{"text": "\\ud800"}',
            b'{"text": "a", "k": 1e999}',
            b'{"text": "a", "k": ' + b"9" * 5_000 + b"}",
            b'{"text": null}',
            b'{"text": {"$gt": ""}}',
            b"\xff\xfe" + junk,
            b"",
            b"null",
            b'{"id": "' + b"../" * 50 + b'etc/passwd"}',
            b'{"id": "/etc/passwd"}',
            b'{"id": "file:///etc/passwd"}',
            b'{"image": "' + base64.b64encode(junk) + b'"}',
            b'{"images": ["http://127.0.0.1:1/"], "texts": ["a"]}',
            json.dumps({"text": "\0\r\nX-Evil: 1" + "é" * 500}).encode(),
            json.dumps({"mix": [{"text": "a", "weight": 1e-320}, {"text": "a"}]}).encode(),
            json.dumps({"mix": [{"text": "a"}, {"text": "a", "weight": -1}]}).encode(),
        ]
    )
    path = rng.choice(["/api/search", "/api/caption", "/api/match", "/v1/embeddings", "/session"])
    get = rng.choice(
        [
            "/api/items/..%2f..%2fetc%2fpasswd/image",
            "/static/..%2f..%2fapp.py",
            "/static/%2e%2e/app.py",
            "/api/items/%00/thumbnail",
            "/api/similar/x?k=99999999999999999999",
            "/api/similar/x?k=-1&k=2",
            "/api/items//image",
            "/%ff%fe",
            "/api/similar/" + "a" * 5_000,
        ]
    )
    kinds: list[Callable[[], tuple[str, str, dict[str, object]]]] = [
        lambda: ("POST", path, {"content": body, "headers": json_type}),
        lambda: ("POST", path, {"content": body, "headers": json_type}),
        lambda: ("POST", path, {"content": junk, "headers": {"Content-Type": "text/xml"}}),
        lambda: ("POST", path, {"content": junk}),
        lambda: (
            "POST",
            path,
            {"content": junk, "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        ),
        lambda: (
            "POST",
            path,
            {"content": junk, "headers": {"Content-Type": "multipart/form-data"}},
        ),
        lambda: ("POST", path, {"files": {"image": ("../../x\r\ny", junk, "image/svg+xml")}}),
        lambda: ("POST", path, {"files": {"images": ("a.png", bomb(60_000, 60_000))}}),
        lambda: ("POST", path, {"data": {"mix": "[" * 20_000}, "files": {"a": b""}}),
        lambda: ("GET", get, {}),
        lambda: (rng.choice(["DELETE", "PUT", "TRACE", "PROPFIND"]), get, {}),
        lambda: (
            "GET",
            "/readyz",
            {"headers": {"X-Request-ID": "a b\tc", "Cookie": 'vlre_token="['}},
        ),
    ]
    return rng.choice(kinds)()


@pytest.mark.whole
def test_a_thousand_hostile_requests_change_no_answer_and_none_gets_a_500(
    client: httpx.Client,
) -> None:
    right = client.post("/api/search", json={"text": "a dog on grass", "k": 5}).json()
    seen: list[tuple[int, str, str]] = []
    wrong: list[object] = []
    done = threading.Event()

    def ask_honestly() -> None:
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as own:
            while not done.wait(0.05):
                answer = own.post("/api/search", json={"text": "a dog on grass", "k": 5}).json()
                if not _same(answer, right):
                    wrong.append(answer)

    def attack(seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as own:
            for _ in range(250):
                method, path, given = hostile(rng)
                answer = own.request(method, path, **given)  # type: ignore[arg-type]
                seen.append((answer.status_code, path, answer.text[:300]))
                assert "x-evil" not in answer.headers

    honest = threading.Thread(target=ask_honestly)
    attackers = [threading.Thread(target=attack, args=(seed,)) for seed in range(4)]
    for thread in (honest, *attackers):
        thread.start()
    for thread in attackers:
        thread.join()
    done.set()
    honest.join()
    assert len(seen) == 1000
    assert [each for each in seen if each[0] >= 500] == []
    assert not any("Traceback" in text or "root:" in text for _, _, text in seen)
    assert wrong == []
    assert client.get("/healthz").status_code == 200


def _same(answer: dict[str, object], right: dict[str, object]) -> bool:
    """Equal but for the rounding of scores in batches of another size."""

    def plain(found: dict[str, object]) -> list[tuple[str, float]]:
        hits = found.get("hits")
        assert isinstance(hits, list), found
        return [(hit["id"], round(hit["score"], 4)) for hit in hits]

    return plain(answer) == plain(right)


def test_overload_is_refused_health_stays_and_it_recovers(store: Path) -> None:
    with served(store, max_waiting=4, max_batch=2) as client:
        right = [hit["id"] for hit in _hits(client)]
        answers: list[tuple[int, object]] = []

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as own:
                for _ in range(12):
                    answer = own.post("/api/search", json={"text": "a dog", "k": 3})
                    if answer.status_code == 200:
                        answers.append((200, [hit["id"] for hit in answer.json()["hits"]]))
                    else:
                        assert int(answer.headers["retry-after"]) >= 1
                        assert code(answer) == (429, "overloaded")
                        answers.append((answer.status_code, None))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        assert client.get("/healthz").status_code == 200
        for thread in threads:
            thread.join()
        assert len(answers) == 16 * 12
        assert {status for status, _ in answers} == {200, 429}
        assert all(found == right for status, found in answers if status == 200)
        assert [hit["id"] for hit in _hits(client)] == right


def test_a_search_too_many_is_refused_before_it_is_read() -> None:
    full = [True]
    guard = Guard(Starlette(), ServeSettings(), Figures(), lambda: full[0])
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n"
    whole = head + b'\r\n{"text": "a"}'
    answer = guard.refused_at_once(whole)
    assert answer is not None
    said, _, body = answer.partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nretry-after: 1" in said
    assert f"content-length: {len(body)}".encode() in said
    assert json.loads(body)["error"]["code"] == "overloaded"
    for other in (
        whole[:-1],  # the rest is still to come
        whole + b"GET / HTTP/1.1\r\n",
        head + b'Expect: 100-continue\r\n\r\n{"text": "a"}',
        whole.replace(b"/api/search", b"/api/caption"),
        whole.replace(b"Content-Length: 13", b"Transfer-Encoding: chunked"),
    ):
        assert guard.refused_at_once(other) is None, other
    full[0] = False
    assert guard.refused_at_once(whole) is None
    assert guard.refused_at_once(whole, is_behind=True)
    assert guard.refused_at_once(b"GET /healthz HTTP/1.1\r\n\r\n", is_behind=True) is None


def _hits(client: httpx.Client) -> list[dict[str, str]]:
    answer = client.post("/api/search", json={"text": "a dog", "k": 3})
    hits: list[dict[str, str]] = answer.json()["hits"]
    return hits


def test_the_log_is_a_line_of_json_for_each_record(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    handler.setFormatter(JsonLines())
    log = logging.getLogger("tests.serve")
    log.addHandler(handler)
    log.error("a\nb %s", "\x1b[2J")
    log.removeHandler(handler)
    [line] = file.getvalue().splitlines()
    assert json.loads(line)["message"] == "a\nb \x1b[2J"
    with caplog.at_level(logging.INFO, "vlre.requests"):
        client.get("/no%0Awhere", headers={"X-Request-ID": "mine-2"})
        client.get("/readyz")  # answered after that was noted
    first = next(r for r in caplog.records if getattr(r, "said", {}).get("request_id") == "mine-2")
    assert "\n" not in JsonLines().format(first)
    noted = json.loads(JsonLines().format(first))
    assert [noted[k] for k in ("method", "path", "status")] == ["GET", "/no\nwhere", 404]
    assert noted["ms"] > 0
