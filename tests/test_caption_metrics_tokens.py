"""The tokenizer gives what the COCO tools' Java program gives."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.metrics import ptb
from retrieval_engine.metrics.ptb import ptb_tokens
from tests.caption_data_sets import data_set_captions, digest

GOLDEN = Path(__file__).parent / "golden" / "caption_metrics"
DATA = Path(__file__).parents[1] / "../shared/data"


def sentences() -> list[tuple[str, str]]:
    rows = json.loads((GOLDEN / "sentences.json").read_text())
    return [(row["caption"], row["tokens"]) for row in rows]


@pytest.mark.parametrize(("caption", "expected"), sentences())
def test_tokens_equal_the_java_program(caption: str, expected: str) -> None:
    assert ptb_tokens(caption) == expected.split()


def test_a_letter_and_full_stop_at_the_end_do_not_depend_on_the_next_caption() -> None:
    """The one pattern that differs: one of 114,419 captions of Flickr8k, Flickr30k and COCO.

    The Java program reads on into the next caption: `crossing of 5th and D.` keeps `d.` before a
    caption that begins with `Two` and gives `d` before one that begins with `The`. Ours ends a
    caption at its end, as if a sentence began after it.
    """
    assert ptb_tokens("at the crossing of 5th and D.")[-1] == "d"
    assert ptb_tokens("Mr. D. walks his dog")[:3] == ["mr.", "d.", "walks"]


def test_data_sets_agree() -> None:
    """At least 99.9 % of the captions there: digests of the Java program's tokens, by block."""
    expected = json.loads((GOLDEN / "data_sets.json").read_text())
    if not (DATA / "coco/karpathy_test_captions.json.gz").exists():
        pytest.skip("the caption data sets are not here")
    captions = data_set_captions(DATA)
    assert len(captions) == expected["captions"]
    found = [" ".join(ptb_tokens(c)) for c in captions]
    size = expected["block"]
    blocks = [digest(found[i : i + size]) for i in range(0, len(found), size)]
    assert blocks == expected["digests"]


def test_tokens_equal_pycocoevalcap_itself() -> None:
    tool = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    captions = [caption for caption, _ in sentences()]
    spaced = [text for caption in captions for text in (caption, "The end of it.")]
    theirs = tool.PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(spaced)})
    assert [ptb_tokens(c) for c in captions] == [
        theirs[2 * i][0].split() for i in range(len(captions))
    ]


@pytest.mark.parametrize(("caption", "_"), sentences())
def test_the_short_cut_for_plain_words_changes_nothing(caption: str, _: str) -> None:
    text, at, slow = caption.strip(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        at, found = ptb._longest(text, at)
        slow += found.split()
    assert [t.lower() for t in slow if t.lower() not in ptb._DROPPED] == ptb_tokens(caption)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text_gives_tokens_without_spaces(text: str) -> None:
    tokens = ptb_tokens(text)
    assert all(token and not any(c.isspace() for c in token) for token in tokens)
    assert tokens == ptb_tokens(text)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from(
            ["a", "dog", "runs,", "cats'", "don't", "St.", "T-shirt", "3", "(red)", '"x"']
        )
    )
)
def test_no_letter_is_lost(words: list[str]) -> None:
    def letters(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    caption = " ".join(words)
    kept = " ".join(ptb_tokens(caption)).replace("-lrb-", "").replace("-rrb-", "")
    assert letters(kept) == letters(caption)


@pytest.mark.parametrize("caption", ["", "   ", ".", "!", '" . "', "\n"])
def test_nothing_to_say_is_no_token(caption: str) -> None:
    assert ptb_tokens(caption) == []
