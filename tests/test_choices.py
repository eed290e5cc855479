"""A choice given as a word is that choice, from Python as from the command line."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from retrieval_engine.caption.decoding import BeamRule, DecodingOptions
from retrieval_engine.errors import UsageError
from retrieval_engine.evaluate import RecallSettings, Ties
from retrieval_engine.heads import HeadConfig, HeadKind
from retrieval_engine.metrics.recall import recall
from retrieval_engine.search.calibrate import CalibrationSettings
from retrieval_engine.search.matching import MatchBy
from retrieval_engine.train.finetune import FinetuneConfig, Select, Task
from retrieval_engine.train.head import HeadRecipe
from retrieval_engine.train.head.recipe import CaptionChoice, Loss, Start


def given(settings: Any, **words: Any) -> Any:
    """Made by somebody without a type checker."""
    return settings(**words)


@pytest.mark.parametrize("ties", list(Ties))
def test_recall_of_a_collapsed_model_by_each_rule_s_word(ties: Ties) -> None:
    collapsed, owner = np.ones((4, 3), np.float32), np.arange(4)
    by_word = recall(collapsed, collapsed, owner, ks=(1,), ties=cast("Ties", ties.value))
    assert by_word.to_json()["ties"] == ties.value
    assert (
        by_word.text_to_image
        == recall(collapsed, collapsed, owner, ks=(1,), ties=ties).text_to_image
    )


def test_settings_take_words() -> None:
    recipe = given(HeadRecipe, kind="mlp", loss="sigmoid", start="random", captions="first")
    assert recipe == HeadRecipe(
        kind=HeadKind.MLP, loss=Loss.SIGMOID, start=Start.RANDOM, captions=CaptionChoice.FIRST
    )
    config = given(FinetuneConfig, task="caption", store="s", select="bleu4")
    assert config.task is Task.CAPTION
    assert config.select is Select.BLEU4
    assert given(RecallSettings, ties="optimistic").ties is Ties.OPTIMISTIC
    assert given(CalibrationSettings, by="itc").by is MatchBy.ITC
    rule = next(iter(BeamRule))
    options = given(DecodingOptions, beams=2, beam_rule=rule.value)
    assert options.beam_rule is rule
    sizes = {"image_width": 4, "text_width": 4, "dim": 4}
    head = given(HeadConfig, kind="linear", feature="pooled", **sizes)
    assert head.kind is HeadKind.LINEAR


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: given(HeadRecipe, kind="deep"), "`kind` is 'deep', must be one of linear, mlp"),
        (lambda: given(FinetuneConfig, task="sorting", store="s"), "`task` is 'sorting'"),
        (
            lambda: given(RecallSettings, ties="first"),
            "`ties` is 'first', must be one of lower-index",
        ),
        (lambda: given(CalibrationSettings, by="eye"), "`by` is 'eye'"),
        (lambda: given(DecodingOptions, beams=2, beam_rule="none"), "`beam_rule` is 'none'"),
    ],
)
def test_another_word_is_refused_with_all_there_are(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make()
