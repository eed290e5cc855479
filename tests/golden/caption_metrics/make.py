"""Makes the expected tokens and scores with pycocoevalcap 1.2 (Java 17).

    PYTHONPATH=. python tests/golden/caption_metrics/make.py [FOLDER WITH CAPTION DATA SETS]

Wants an environment of its own with `pycocoevalcap==1.2`. Sentences, captions and references are
our own. From the data sets only digests of the tokens are kept, a digest for a block of captions.
"""

import json
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tests.caption_data_sets import BLOCK, EVERY, data_set_captions, digest

HERE = Path(__file__).parent


def tokens(captions: list[str]) -> list[str]:
    """What the COCO tools make of each caption, a sentence following each."""
    spaced = [text for caption in captions for text in (caption, "The end of it.")]
    found = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(spaced)})
    # A telephone number or a mixed fraction is one token with a no-break space inside.
    return [" ".join(found[i][0].split()) for i in range(0, len(spaced), 2)]


def score() -> dict[str, object]:
    """Corpus and per-image scores of our own captions."""
    captions = json.loads((HERE / "captions.json").read_text())
    references = json.loads((HERE / "references.json").read_text())
    images = [row["image"] for row in captions]
    ours = {i: [t] for i, t in zip(images, tokens([r["caption"] for r in captions]), strict=True)}
    theirs = {
        image: tokens([row["caption"] for row in references if row["image"] == image])
        for image in images
    }
    bleu, bleus = Bleu(4).compute_score(theirs, ours, verbose=0)
    rouge, rouges = Rouge().compute_score(theirs, ours)
    cider, ciders = Cider().compute_score(theirs, ours)
    meteor, meteors = Meteor().compute_score(theirs, ours)
    names = [f"BLEU-{n}" for n in range(1, 5)]
    return {
        "metrics": dict(zip(names, bleu, strict=True))
        | {"ROUGE-L": float(rouge), "CIDEr": float(cider), "METEOR": meteor},
        "per_image": dict(zip(names, bleus, strict=True))
        | {"ROUGE-L": rouges.tolist(), "CIDEr": ciders.tolist(), "METEOR": meteors},
    }


def main() -> None:
    """Write the files beside this one."""
    sentences = [row["caption"] for row in json.loads((HERE / "sentences.json").read_text())]
    rows = [{"caption": c, "tokens": t} for c, t in zip(sentences, tokens(sentences), strict=True)]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / "sentences.json").write_text(f"[\n{lines}\n]\n")
    (HERE / "expected.json").write_text(json.dumps(score(), indent=1) + "\n")
    if len(sys.argv) > 1:
        captions = data_set_captions(Path(sys.argv[1]))
        found = tokens(captions)
        blocks = [digest(found[i : i + BLOCK]) for i in range(0, len(found), BLOCK)]
        value = {"captions": len(found), "every": EVERY, "block": BLOCK, "digests": blocks}
        (HERE / "data_sets.json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
