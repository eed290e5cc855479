"""Pictures a second with one CLIP tower (ViT-B/32 at 224), the one that all of these can open.

A case is a number of drawn scenes, JPEGs of 500 x 375; see `encode`, whose rules are the same. Batches
are of 32 on the others' sides but one.
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
    """Its reader (one worker), mapper and writer, run by its runner; its logger is left out.

    The logger is a second process that imports all of it again, half a minute on a busy machine.
    """
    from all_clip import hf_clip, load_clip
    from clip_retrieval.clip_inference import mapper, reader, runner, writer

    def encode_image(self: Any, image: Any) -> Any:
        # Its wrapper is of transformers 4, where this gave the vectors themselves.
        return self.inner_model.get_image_features(image.squeeze(1)).pooler_output

    hf_clip.HFClipWrapper.encode_image = encode_image
    hf_clip.HFClipWrapper.encode_text = lambda self, text: None  # only to warm up
    model, out = f"hf_clip:{work / 'model'}", work / "clip-retrieval"
    _, preprocess, _ = load_clip(clip_model=model, use_jit=False)
    sides = {"enable_image": True, "enable_text": False, "enable_metadata": False}
    made = mapper.ClipMapper(
        **sides, use_mclip=False, clip_model=model, use_jit=False, mclip_model=""
    )

    def read(sampler: Any) -> Any:
        return reader.FilesReader(
            sampler, preprocess, None, str(work / "pictures"), encode.BATCH, 1, **sides
        )

    def write(partition: int) -> Any:
        folder = str(out)
        return writer.NumpyWriter(
            partition_id=partition, output_folder=folder, output_partition_count=1, **sides
        )

    run = runner.Runner(read, lambda: made, write, lambda _: Silent(), 1)
    with watched() as watch:
        run(0)
    vectors = np.concatenate([np.load(f) for f in sorted((out / "img_emb").glob("*.npy"))])
    return encode.kept(work, "clip-retrieval", vectors, watch.figures)


class Silent:
    """A logger that says nothing."""

    def start(self) -> None:
        """Nothing to start."""

    def __call__(self, told: dict[str, float]) -> None:
        """Nothing to say."""

    def end(self) -> None:
        """Nothing to end."""


COMPARISON = Comparison(
    prepare=prepare,
    judge=encode.judge,
    sides={
        "vlre": Side(run=partial(encode.ours, dtype="float32", name="vlre")),
        "vlre int8": Side(run=partial(encode.ours, dtype="int8", name="vlre int8")),
        "sentence-transformers": Side(run=sentence_transformers, package="sentence-transformers"),
        "clip-retrieval": Side(
            run=clip_retrieval, package="clip-retrieval", note="reader, mapper, writer; float16 out"
        ),
        encode.LOOP: Side(
            run=partial(transformers, batch=1, name=encode.LOOP), package="transformers"
        ),
        encode.BATCHES: Side(
            run=partial(transformers, batch=encode.BATCH, name=encode.BATCHES),
            package="transformers",
        ),
    },
    cases=("64",),
    tiny=str(encode.TINY),
)
