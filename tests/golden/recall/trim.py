"""Trims the recall part out of golden outputs of the authors' BLIP code.

    python tests/golden/recall/trim.py FOLDER     # holds expected.npz and expected.json

The numbers come from salesforce/BLIP @ 056a169, `train_retrieval.py: evaluation, itm_eval`, on a
random tiny checkpoint; `k8` and `k12` are k_test, with -100 where a pair was not scored.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    arrays = np.load(folder / "expected.npz")
    kept = {
        "txt2img": arrays["txt2img"],
        "image_embeds": arrays["image_embeds"],
        "text_embeds": arrays["text_embeds"],
        "itc_only_i2t": arrays["itc_sim"],
        "itc_only_t2i": arrays["itc_sim"].T,
        "full_rerank_i2t": arrays["score_full"],
        "full_rerank_t2i": arrays["score_full"].T,
    }
    for ours, theirs in (("k8", "score_{}_k8"), ("k12", "score_{}_k12"), ("planted", "planted_{}")):
        for side in ("i2t", "t2i"):
            kept[f"{ours}_{side}"] = arrays[theirs.format(side)]
    np.savez_compressed(HERE / "blip_scores.npz", **kept)
    figures = json.loads((folder / "expected.json").read_text())["recall"]
    (HERE / "blip_recall.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
