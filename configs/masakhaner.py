"""MasakhaNER: names in the news of African languages (Adelani et al., 2021).

    launch.py train configs/masakhaner.py --init-from DIR   DIR: any BERT, from Hugging Face
    ... --data.train conll:data/hau/train.txt --data.dev conll:data/hau/dev.txt

Some of its entities are not begun (I- at a sentence's start), so it is read as conlleval reads it
(`scheme="IOB1"`).
Device: two CPU cores, or one GPU with the same command.
"""

from research.config import Config
from research.data.tagged import Tagged
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.tag import Tag


def config() -> Config:
    return Config(
        name="masakhaner",
        task=Tag(),
        data=Tagged(
            train="conll:data/hau/train.txt",
            dev="conll:data/hau/dev.txt",
            test="conll:data/hau/test.txt",
            scheme="IOB1",
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1),
        epochs=5,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/f1",
    )
