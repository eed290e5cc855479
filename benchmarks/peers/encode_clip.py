"""Pictures a second with one CLIP tower (ViT-B/32 at 224), the one that all of these can open.

A case is a number of drawn scenes, JPEGs of 500 x 375; see `encode`, whose rules are the same. Batches
are of 32 on every side. clip-retrieval's own reader, mapper and writer run as its command has them.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import encode
from benchmarks.peers.turns import Comparison, Figures, Side, watched

LETTERS = "abcdefghijklmnopqrstuvwxyz.,"


def prepare(work: Path, case: str) -> None:
    """Pictures and a CLIP of random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    text: dict[str, int] = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision: dict[str, int] = {}
    tiny = int(case) <= encode.TINY
    if tiny:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 4}
        text, vision = text | small, {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    model.save_pretrained(work / "model")
    vocabulary = {word: i for i, word in enumerate(words)}
    side = 32 if tiny else 224
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[])
    CLIPProcessor(images, tokenizer).save_pretrained(work / "model")
    images.save_pretrained(work / "model")
    encode.draw(work / "pictures", int(case))


def transformers(work: Path, case: str, *, batch: int, name: str) -> Figures:
    """`CLIPModel` as its documentation has it, some pictures at a time."""
    import torch
    from transformers import AutoImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(work / "model").eval()
    processor = AutoImageProcessor.from_pretrained(work / "model")

    def run(pictures: list[Any]) -> np.ndarray:
        with torch.no_grad():
            pixels = processor(pictures, return_tensors="pt")["pixel_values"]
            state = model.vision_model(pixels).pooler_output
            vectors: np.ndarray = model.visual_projection(state).numpy()
        return vectors

    return encode.in_batches(work, name, batch, run)


def sentence_transformers(work: Path, case: str) -> Figures:
    """`SentenceTransformer(...).encode` of opened pictures."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(work / "model"), device="cpu")

    def run(pictures: list[Any]) -> np.ndarray:
        vectors: np.ndarray = model.encode(pictures, batch_size=encode.BATCH)
        return vectors

    return encode.in_batches(work, "sentence-transformers", encode.BATCH, run)


def clip_retrieval(work: Path, case: str) -> Figures:
    """Its `clip_inference` over the folder, one worker, with the model that it has warmed up."""
    from all_clip import load_clip
    from clip_retrieval.clip_inference.main import main as clip_inference

    model = f"hf_clip:{work / 'model'}"
    load_clip(clip_model=model, use_jit=False, warmup_batch_size=1, clip_cache_path=None)
    out = work / "clip-retrieval"
    with watched() as watch:
        clip_inference(
            input_dataset=str(work / "pictures"),
            output_folder=str(out),
            input_format="files",
            enable_text=False,
            batch_size=encode.BATCH,
            num_prepro_workers=1,
            clip_model=model,
            use_jit=False,
            output_partition_count=1,
        )
    vectors = np.concatenate([np.load(f) for f in sorted((out / "img_emb").glob("*.npy"))])
    return encode.kept(work, "clip-retrieval", vectors, watch.figures)


COMPARISON = Comparison(
    prepare=prepare,
    judge=encode.judge,
    sides={
        "vlre": Side(run=partial(encode.ours, dtype="float32", name="vlre")),
        "vlre int8": Side(run=partial(encode.ours, dtype="int8", name="vlre int8")),
        "sentence-transformers": Side(run=sentence_transformers, package="sentence-transformers"),
        "clip-retrieval": Side(run=clip_retrieval, package="clip-retrieval"),
        encode.LOOP: Side(
            run=partial(transformers, batch=1, name=encode.LOOP), package="transformers"
        ),
        encode.BATCHES: Side(
            run=partial(transformers, batch=encode.BATCH, name=encode.BATCHES), package="transformers"
        ),
    },
    cases=("64",),
    tiny=str(encode.TINY),
)
