"""ChnSentiCorp: is a Chinese review of a hotel, a book or a computer positive? (Tan & Zhang, 2008)

    launch.py train configs/chnsenticorp.py --init-from DIR      DIR: a Chinese BERT
    ... --data.train Z/train.tsv --data.dev Z/dev.tsv            Z: chnsenticorp.zip

A path goes on into the archive to one of its files.

Device: one GPU; reviews are long. BERT-base-chinese reaches 0.95 accuracy (Cui et al., 2021).
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="chnsenticorp",
        task=Classify(),
        data=Texts(
            train="chnsenticorp.zip/train.tsv",
            dev="chnsenticorp.zip/dev.tsv",
            test="chnsenticorp.zip/test.tsv",
            text="text_a",
            label="label",
            max_length=256,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=2e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
