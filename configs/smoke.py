"""One minute from nothing: areas of the standard library told by their docstrings.

    launch.py train configs/smoke.py

Device: two CPU cores, offline. A small trunk from scratch; expect dev accuracy far above chance
(1 / 8) and far below what a pre-trained one reaches: see experiments/quickstart.py.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="smoke",
        task=Classify(
            backbone=Transformer(
                Spec(vocab_size=4000, width=64, depth=2, heads=2, hidden=256, max_positions=64)
            )
        ),
        data=Texts(
            train="stdlib:areas-train",
            dev="stdlib:areas-dev",
            tokenizer="stdlib:4000",
            max_length=64,
        ),
        optim=Optim(learning_rate=1e-3, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
