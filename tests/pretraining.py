"""The small pretraining that several files of tests look at."""

from retrieval_engine.train.pretrain import PretrainConfig

STEPS = 16
CONFIG = PretrainConfig(
    source="scenes:130?seed=11",
    preset="micro",
    steps=STEPS,
    batch_size=24,
    concept_share=0.5,
    eval_every=4,
    dtype="float32",
    seed=5,
)
