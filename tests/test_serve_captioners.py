"""Several captioners in one server: a request chooses, the page shows them side by side."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from retrieval_engine import Engine
from retrieval_engine.errors import UsageError
from retrieval_engine.serve import ServeSettings
from tests import tiny
from tests.children import in_child, vlre
from tests.chromium import CHROMIUM, open_page
from tests.serving import make_store, served


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The store's own model, and one that writes something else."""
    return "vlre-tiny", str(tiny.save_blip_captioner(tmp_path_factory.mktemp("other"), seed=2))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("captioners"), 4)


@pytest.fixture(scope="module")
def client(store: Path, models: tuple[str, str]) -> Iterator[httpx.Client]:
    with served(store, caption_models=models) as made:
        yield made


def test_a_request_chooses_among_the_models_that_the_server_was_started_with(
    client: httpx.Client, models: tuple[str, str], store: Path
) -> None:
    engine = Engine(store=store)
    ids = [entry.id for entry in engine][:2]
    asked = {"ids": ids, "length": 8}
    assert client.get("/api/store").json()["captioners"] == list(models)
    answers = [client.post("/api/caption", json={**asked, "model": m}).json() for m in models]
    assert [answer["model"] for answer in answers] == list(models)
    captions = [[image["captions"] for image in answer["images"]] for answer in answers]
    assert captions[0] != captions[1]
    assert client.post("/api/caption", json=asked).json() == answers[0]
    picture = client.get(f"/api/items/{ids[0]}/image").content
    form = {"length": "8", "model": models[1]}
    sent = client.post("/api/caption", files={"images": ("a.jpg", picture)}, data=form).json()
    assert sent["images"][0]["captions"] == captions[1][0]


def test_no_other_model_is_ever_opened(
    client: httpx.Client, models: tuple[str, str], tmp_path: Path
) -> None:
    another = tiny.save_blip_captioner(tmp_path / "another")
    for name in (str(another), "vlre-photo", "../" * 9 + "etc", f"{models[1]}/."):
        answer = client.post("/api/caption", json={"ids": ["0"], "model": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_model")
        assert answer.json()["error"]["message"].endswith(f"there are {', '.join(models)}")
    with pytest.raises(UsageError, match="`caption_models` holds one twice"):
        ServeSettings(caption_models=("a", "a"))


def test_a_captioner_that_is_not_there_is_refused_at_the_start(store: Path) -> None:
    given = ["--caption-model", "vlre-tiny", "--caption-model", "nowhere"]
    ended = in_child(vlre("serve", "--store", store, "--port", "0", *given), kill_after=60)
    captioning = in_child(vlre("caption", "--store", store, "--model", "nowhere"))
    assert ended.code == captioning.code == 1
    [line] = [line for line in ended.output.splitlines() if line.startswith("Error: ")]
    assert line.startswith("Error: no checkpoint 'nowhere'")
    assert line in captioning.output


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_shows_the_captions_of_each_model_side_by_side(
    client: httpx.Client, models: tuple[str, str], tmp_path: Path
) -> None:
    with open_page(tmp_path / "profile") as page:
        page.open(f"{client.base_url}#captions")
        page.wait("!document.getElementById('models').hidden")
        offered = "[...document.getElementById('model').options].map((o) => o.value)"
        assert page.run(offered) == list(models)
        page.run(f"document.getElementById('model').value = {json.dumps(models[1])}")
        page.run("document.getElementById('samples').click()")
        said = "document.getElementById('captions-said').textContent"
        page.wait(f"{said} === {json.dumps(f'Written by {models[1]}.')}")
        assert page.run("document.querySelectorAll('#written h3').length") == 0
        page.run("document.getElementById('compare').click()")
        page.wait("document.querySelectorAll('#written > li').length === 4")
        page.wait("document.querySelectorAll('#written .sides > div').length === 8")
        first = "document.querySelector('#written > li:first-child')"
        assert page.run(f"{first}.querySelectorAll('img').length") == 1
        titles = f"[...{first}.querySelectorAll('h3')].map((e) => e.textContent)"
        assert page.run(titles) == list(models)
        sides = f"[...{first}.querySelectorAll('.sides > div')].map((e) => e.getBoundingClientRect().top)"
        page.resize(1280, 900)
        assert len(set(page.run(sides))) == 1
        page.run("URL.createObjectURL = (blob) => { window.saved = blob; return '#'; }")
        page.run("document.getElementById('to-csv').click()")
        lines = page.run("window.saved.text()").splitlines()
        assert len(lines) == 9
        assert all(f',"{model}",' in "\n".join(lines) for model in models)
        page.resize(360, 800, is_phone=True)
        assert page.run("document.documentElement.scrollWidth") <= 360
        assert page.complaints == []
