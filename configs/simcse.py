"""Unsupervised SimCSE: sentence embeddings from plain text alone (Gao et al., 2021).

    launch.py train configs/simcse.py --init-from DIR --data.train text.txt     one text a line
    ... --data.dev sts-dev.tsv                                                  columns sentence1,
                                                                                sentence2, score

Device: two CPU cores, or one GPU with the same command; read dev/spearman (STS-B, Cer et al.,
2017). Short runs at small learning rates: what helps is gained in the first hundreds of steps.
"""

from research.config import Config
from research.data.pairs import Pairs
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.simcse import SimCSE


def config() -> Config:
    return Config(
        name="simcse",
        task=SimCSE(),
        data=Pairs(
            train="stdlib:passages",
            dev="tfds:glue/stsb:validation",
            anchor="text",
            positive=None,
            max_length=32,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=3e-5, schedule="linear", weight_decay=0.0),
        epochs=1,
        batch_size=64,
        evals=(HeldOut(split="dev"),),
        eval_every=125,
        track="dev/spearman",
    )
