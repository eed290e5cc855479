"""Trims the golden cases here into the ones `vlre doctor` ships in the package.

    python -m tests.golden.trim_doctor

Weights and expected arrays stay those of the authors' code, float for float: four of the pictures,
all captions, and of the vocabulary only the words that the captions use (a WordPiece tokenizer
takes the longest match, so that leaving out unused words changes no tokenisation).
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from retrieval_engine.doctor import GOLDENS
from retrieval_engine.models.import_checkpoint import build_tokenizer
from tests.golden import GOLDEN, IMAGES, VOCAB, import_golden

PICTURES = [0, 5, 6, 8]  # the smallest files
SPECIAL = {"blip": ["[DEC]", "[ENC]"], "blip2": ["[DEC]"]}
NAMES = {"blip": "blip/retrieval", "blip2": "blip2"}
WORDS = {
    "blip": "text_encoder.embeddings.word_embeddings.weight",
    "blip2": "embeddings.word_embeddings.weight",
}
TOKENS = {"blip": "vision_last_hidden_state", "blip2": "vision_ln_hidden_state"}


def main(scratch: Path) -> None:
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for family, gold in GOLDEN.items():
        source, out = import_golden(NAMES[family], scratch / family), GOLDENS / family
        out.mkdir(parents=True)
        words = VOCAB.read_text(encoding="utf-8").splitlines()
        special = {0, 100, 101, 102, 103}
        kept = sorted(special | {int(i) for i in np.unique(gold["input_ids"])})
        rows = [*kept, *range(len(words), len(words) + len(SPECIAL[family]))]
        (scratch / "vocab.txt").write_text("\n".join(words[i] for i in kept) + "\n")
        tokenizer = build_tokenizer(scratch / "vocab.txt", len(rows), SPECIAL[family])
        tokenizer.save_pretrained(out)

        tensors = load_file(source / "model.safetensors")
        tensors[WORDS[family]] = tensors[WORDS[family]][torch.tensor(rows)].clone()
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        (out / "model.safetensors").chmod(0o644)
        config = json.loads((source / "config.json").read_text())
        text = config["text_config" if family == "blip" else "qformer_config"]
        text["vocab_size"] = len(rows)
        for name in ("pad", "bos", "sep", "eos"):
            text[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id", None) or 0
        text["eos_token_id"] = text["sep_token_id"]
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        shutil.copyfile(source / "preprocessor_config.json", out / "preprocessor_config.json")

        logits = gold["itm_logits_enc"][..., 1] if family == "blip" else gold["itm_logit_pos"]
        np.savez_compressed(
            out / "expected.npz",
            captions=np.array(gold.captions),
            pixels=np.stack([gold["pixel_values"][i] for i in PICTURES]),
            tokens=gold[TOKENS[family]][PICTURES],
            image_itc=gold["image_embeds"][PICTURES].reshape(len(PICTURES), -1, 32),
            text_itc=gold["text_embeds"],
            itc_scores=gold["itc_sim"][PICTURES],
            itm_logits=logits[PICTURES],
        )
    (GOLDENS / "pictures").mkdir()
    for i in PICTURES:
        shutil.copyfile(IMAGES[i], GOLDENS / "pictures" / IMAGES[i].name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
