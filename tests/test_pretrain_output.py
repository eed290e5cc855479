"""What pretraining writes, as transformers and the engine read it; and the model that ships."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    GenerationConfig,
)
from transformers.modeling_utils import PreTrainedModel

from benchmarks.pretrain import measure
from retrieval_engine.progress import Silent
from retrieval_engine.train.pretrain import pretrain
from retrieval_engine.train.pretrain.trainer import Run
from tests.pretraining import CONFIG


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A model trained without interruption."""
    out = tmp_path_factory.mktemp("trained") / "model"
    pretrain(CONFIG, out, cache=cache)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Run:
    """A run that has not begun."""
    out = tmp_path_factory.mktemp("run")
    return Run(CONFIG, out, cache, Silent(), resume=False)


def tensors(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(out / "model.safetensors")
    return found


@pytest.mark.whole
@pytest.mark.parametrize("kind", [BlipForImageTextRetrieval, BlipForConditionalGeneration])
def test_transformers_loads_all_of_it(trained: Path, kind: type[PreTrainedModel]) -> None:
    model, report = kind.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    expected = tensors(trained)
    assert all(torch.equal(v, expected[n]) for n, v in model.state_dict().items() if n in expected)


def test_the_loaded_model_computes_what_was_trained(run: Run, tmp_path: Path) -> None:
    from retrieval_engine.train.pretrain.export import export

    export(run.model, run.tokenizer, tmp_path, dtype=torch.float32, facts=_facts())
    pixels = run.batcher.batch(0, with_texts=False).pixels[:3]
    text = run.tokenizer(["a dog on grass"] * 3, return_tensors="pt")
    ids, mask = text["input_ids"], text["attention_mask"]
    matcher = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    captioner = BlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        states = run.model.see(pixels)
        cosines = run.model.embed_images(states) @ run.model.embed_texts(ids, mask).T
        theirs = matcher(ids, pixels, use_itm_head=False, attention_mask=mask).itm_score
        torch.testing.assert_close(theirs, cosines)
        logits = run.model.match(ids, mask, states, torch.arange(3))
        torch.testing.assert_close(matcher(ids, pixels, attention_mask=mask).itm_score, logits)
        logits = run.model.caption_logits(ids, mask, states)
        told = captioner(pixels, input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(told, logits)


def _facts() -> dict[str, Any]:
    report = {"parameters": 1, "steps": 1, "minutes": 1, "best_step": 1, "mean_recall": 1}
    return {
        "config": CONFIG.to_json(),
        "changed": {},
        "report": report,
        "items": 1,
        "captions": 1,
    }


def test_the_directory_says_how_it_was_made(trained: Path) -> None:
    facts = json.loads((trained / "training.json").read_text())
    assert facts["config"] == CONFIG.to_json()
    assert facts["items"] == 123  # of 130, a twentieth is held out
    card = (trained / "README.md").read_text()
    assert "vlre pretrain 'scenes:130?seed=11' --steps 16 --batch-size 24" in card
    assert " --preset 'micro' " in card
    assert (trained / "curves.png").stat().st_size > 5000
    assert not (trained / "run").exists()


def test_captions_begin_with_the_prompt_or_without(trained: Path) -> None:
    model = BlipForConditionalGeneration.from_pretrained(trained, dtype=torch.float32)
    tokenizer = BertTokenizer.from_pretrained(trained)
    prompt = GenerationConfig.from_pretrained(trained).prompt
    pixels = torch.zeros(1, 3, 32, 32)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    told = tokenizer.decode(
        model.generate(pixels, input_ids=ids, max_new_tokens=9)[0], skip_special_tokens=True
    )
    assert told.startswith("a picture of")
    bare = model.generate(pixels, max_new_tokens=9)[0]
    assert bare[0] == model.config.text_config.bos_token_id == tokenizer.bos_token_id


# The model that ships


@pytest.fixture(scope="module")
def tiny() -> Path:
    from retrieval_engine.models.checkpoint import shipped

    return shipped()["vlre-tiny"]


def test_shipped_model_is_small_and_whole(tiny: Path) -> None:
    assert sum(file.stat().st_size for file in tiny.iterdir()) < 20e6
    card = (tiny / "README.md").read_text()
    assert "vlre pretrain" in card
    for kind in (BlipForImageTextRetrieval, BlipForConditionalGeneration):
        _, report = kind.from_pretrained(tiny, output_loading_info=True)
        assert not report["missing_keys"]


@pytest.mark.whole
def test_shipped_model_keeps_its_promises(tiny: Path) -> None:
    """The benchmark at a small size; its figures over 1,000 scenes are in the model card."""
    found = measure(str(tiny), scenes=200, seed=987654)
    assert found["text_to_image"]["R@1"] >= 85
    assert found["text_to_image"]["R@10"] >= 99
    assert found["precision@5_itc"] >= 0.9
    assert found["precision@5_itm"] >= 0.9
    assert found["caption_nouns_right"] >= 95
    assert found["itm_true"] > 0.7
    assert found["itm_nonsense"] < 0.05
