"""The page in a real Chromium: what people do with it, and that it asks nobody else."""

import base64
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.chromium import CHROMIUM, Page, open_page
from tests.serving import make_store, served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
HITS = "document.querySelectorAll('#hits .card').length"
# What `axe` looks for first: names of controls, texts of images, one h1, contrast of 4.5.
FAULTS = """(() => {
  const seen = (e) => e.checkVisibility() && e.getClientRects().length;
  const name = (e) => (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || '').trim();
  const found = [];
  for (const e of document.querySelectorAll('button, input, a, [role=tab]'))
    if (seen(e) && !name(e) && !e.querySelector('img[alt]')) found.push(`no name: ${e.outerHTML}`);
  for (const e of document.querySelectorAll('img'))
    if (!e.hasAttribute('alt')) found.push(`no alt: ${e.outerHTML}`);
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  const part = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => .2126 * part(c[0]) + .7152 * part(c[1]) + .0722 * part(c[2]);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const under = (e) => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !seen(e) || e.disabled) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(under(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push(`contrast ${(a + .05) / (b + .05)}: ${e.outerHTML}`);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = make_store(tmp_path_factory.mktemp("page"), 30)
    with served(store, max_pixels=5_000_000) as made:
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_page(tmp_path_factory.mktemp("browser") / "profile") as made:
        yield made


@pytest.fixture
def page(client: httpx.Client, browser: Page) -> Iterator[Page]:
    """The page, open; at the end it has asked this server alone, and complained of nothing."""
    browser.requests, browser.complaints = [], []
    browser.resize(1280, 900)
    browser.open(str(client.base_url))
    yield browser
    browser.run("1")
    hosts = {urlsplit(address).netloc for address in browser.requests if address[:4] == "http"}
    assert hosts == {urlsplit(str(client.base_url)).netloc}
    assert browser.complaints == []


def test_filters_probabilities_and_the_camera(page: Page, client: httpx.Client) -> None:
    page.run("document.getElementById('words').value = 'a dog on grass'")
    where = "subjects contains 'dog'"
    asked = {"text": "a dog on grass", "where": where, "k": 30}
    left = len(client.post("/api/search", json=asked).json()["hits"])
    assert 0 < left < 24
    page.run(f"document.getElementById('only').value = {json.dumps(where)}")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait(f"{HITS} === {left}")
    page.run("document.getElementById('only').value = \"subjects contains 'zebra'\"")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait("document.getElementById('search-said').textContent.includes('zebra')")
    page.run("document.getElementById('only').value = ''")
    page.run("document.getElementById('sure').checked = true")
    page.run("document.getElementById('ask').requestSubmit()")
    matched = client.post("/api/search", json={"text": "a dog on grass", "k": 24, "min_match": 0.5})
    sure = [round(100 * hit["match"]) for hit in matched.json()["hits"]]
    labels = "[...document.querySelectorAll('#hits .card .small')].map((e) => e.textContent)"
    page.wait(f"{HITS} === {len(sure)} && {labels}.every((text) => text.endsWith(' % sure'))")
    page.run("document.getElementById('sure').checked = false")
    page.run("document.getElementById('camera').click()")
    page.wait("document.getElementById('shoot-view').videoWidth > 0")
    page.run("document.getElementById('shoot-take').click()")
    page.wait("document.getElementById('search-said').textContent.includes('an image')")
    assert page.run("document.getElementById('shoot-view').srcObject") is None


def test_search_by_words_by_a_dropped_image_and_by_a_click(
    page: Page, client: httpx.Client
) -> None:
    page.run("document.getElementById('words').value = 'a dog on grass'")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait(f"{HITS} === 24")
    first = client.post("/api/search", json={"text": "a dog on grass", "k": 1}).json()["hits"][0]
    shown = "document.querySelector('#hits .card img').getAttribute('src')"
    assert page.run(shown) == first["thumbnail"]
    page.wait("document.querySelector('#hits .card img').naturalWidth > 0")
    page.run("document.getElementById('more').click()")
    page.wait(f"{HITS} === 30")
    page.run("document.querySelector('#hits .card').click()")
    page.wait("document.querySelectorAll('#like .card').length === 12")
    assert page.run("document.getElementById('item-id').textContent") == first["id"]
    assert page.run(FAULTS) == []
    words = "[...document.querySelectorAll('#looked-words button')]"
    page.wait(f"{words}.map((e) => e.textContent).join(' ') === 'a dog on grass'")
    shade = "document.getElementById('item-shade')"
    page.run(f"{words}[1].click()")
    page.wait(f"!{shade}.hidden && {shade}.naturalWidth > 0")
    box = "JSON.stringify({0}.getBoundingClientRect())"
    assert page.run(box.format(shade)) == page.run(
        box.format("document.getElementById('item-image')")
    )
    page.run(f"{words}[1].click()")
    assert page.run(f"{shade}.hidden") is True
    page.run("document.getElementById('item-close').click()")
    image = base64.b64encode(client.get(first["image"]).content).decode()
    page.run(
        f"""(() => {{
          const bytes = Uint8Array.from(atob('{image}'), (c) => c.charCodeAt(0));
          const given = new DataTransfer();
          given.items.add(new File([bytes], 'dropped.jpg', {{ type: 'image/jpeg' }}));
          document.body.dispatchEvent(
            new DragEvent('drop', {{ dataTransfer: given, bubbles: true, cancelable: true }}));
        }})()"""
    )
    page.wait(
        "document.getElementById('search-said').textContent.includes('an image')"
        f" && {shown.replace(').get', ')?.get')} === '{first['thumbnail']}'"
    )


def test_captions_in_three_variations_are_copied_and_saved(page: Page) -> None:
    page.run("document.getElementById('tab-captions').click()")
    page.run("document.getElementById('samples').click()")
    page.wait("document.querySelectorAll('#written ol li').length === 4")
    assert page.run("document.getElementById('to-csv').disabled") is False
    page.run("document.getElementById('variations').click()")
    page.wait("document.querySelectorAll('#written ol li').length === 12")
    notes = "[...document.querySelectorAll('#written > li:first-child .small')]"
    assert page.run(f"{notes}.map((e) => e.textContent.trim())") == [
        f"temperature {value}" for value in ("0.70", "0.95", "1.20")
    ]
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.run("window.setTimeout = () => 0")  # or it would say so for a moment only
    page.run("document.querySelector('#written ol button').click()")
    page.wait("document.querySelector('#written ol button').textContent === 'Copied'")
    text = "document.querySelector('#written ol li > span').firstChild.textContent"
    assert page.run(f"window.copied === {text}") is True
    page.run("URL.createObjectURL = (blob) => { window.saved = blob; return '#'; }")
    page.run("document.getElementById('to-csv').click()")
    assert page.run("window.saved.text()").count("\n") == 13


def test_it_is_readable_in_light_and_dark_and_on_a_phone(page: Page) -> None:
    for width in (1280, 360):
        page.resize(width, 800, is_phone=width < 500)
        for _ in range(2):
            page.run("document.getElementById('theme').click()")
            for tab in ("search", "captions", "store"):
                page.run(f"document.getElementById('tab-{tab}').click()")
                assert page.run(FAULTS) == []
                assert page.run("document.documentElement.scrollWidth") <= width
    page.wait("document.querySelectorAll('#facts dd').length > 5")
    assert page.run("document.getElementById('facts').textContent").startswith("Images30")


def test_the_description_of_the_api_is_readable_offline(page: Page, client: httpx.Client) -> None:
    page.open(f"{client.base_url}/docs".replace("//docs", "/docs"))
    page.wait("document.querySelectorAll('section').length >= 8")
    assert "curl" in page.run("document.querySelector('pre').textContent")
    assert page.run(FAULTS) == []


def test_what_a_store_or_a_client_says_is_never_run(page: Page) -> None:
    page.run("document.getElementById('words').value = '<img src=x onerror=alert(1)>'")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait(f"{HITS} === 24")
    assert page.run("document.querySelectorAll('#search-said img').length") == 0
    page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'x=1'}))")
    assert page.run("typeof x") == "undefined"
    assert "Content Security Policy" in page.complaints.pop()
