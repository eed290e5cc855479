"""What changes a fingerprint, what does not, and that it survives a journey through JSON."""

from dataclasses import replace

import pytest

from retrieval_engine.fingerprint import EncoderSpec, digest

SPEC = EncoderSpec(
    family="blip",
    checkpoint="some/model",
    weights={"vision": "v", "image": "i", "text": "t", "itm": "m"},
    image_size=384,
    text_length=35,
    dtype="float16",
)


@pytest.mark.parametrize(
    "change",
    [
        {"family": "blip2"},
        {"weights": {**SPEC.weights, "text": "other"}},
        {"image_size": 224},
        {"text_length": 32},
        {"dtype": "bfloat16"},
        {"adapter": "lora"},
        {"preprocessing": "bilinear"},
        {"text_normaliser": "none"},
        {"vocabulary": "v"},
        {"pooling": "mean"},
        {"extra": {"post_layernorm_eps": 1e-6}},
    ],
)
def test_everything_that_decides_the_numbers_counts(change: dict[str, object]) -> None:
    assert replace(SPEC, **change).fingerprint != SPEC.fingerprint  # type: ignore[arg-type]


def test_a_name_does_not_count() -> None:
    moved = replace(SPEC, checkpoint="/elsewhere", revision="abc")
    assert moved.fingerprint == SPEC.fingerprint


def test_a_field_added_later_would_keep_old_fingerprints() -> None:
    known = {"family": "blip", "weights": dict(SPEC.weights), "image_size": 384}
    known |= {"text_length": 35, "dtype": "float16"}
    assert SPEC.fingerprint == digest(known)


def test_json_keeps_it() -> None:
    assert EncoderSpec.from_json(SPEC.to_json()) == SPEC
    assert EncoderSpec.from_json(SPEC.to_json()).fingerprint == SPEC.fingerprint


def test_a_part_depends_on_its_own_side_alone() -> None:
    other_text = replace(SPEC, weights={**SPEC.weights, "text": "other"}, text_length=32)
    assert other_text.part("vision", "image") == SPEC.part("vision", "image")
    assert other_text.part("text") != SPEC.part("text")
    assert replace(SPEC, image_size=224).part("vision") != SPEC.part("vision")
