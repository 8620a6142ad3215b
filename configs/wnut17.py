"""WNUT-17: rare and new entities in noisy text (Derczynski et al., 2017).

    launch.py train configs/wnut17.py --init-from DIR   DIR: any BERT, from Hugging Face
    ... --data.train conll:wnut17train.conll --data.dev conll:emerging.dev.conll

Its dev file goes on with entities that are not begun (I- after O or another type), so it is read as
conlleval reads it (`scheme="IOB1"`).
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
        name="wnut17",
        task=Tag(),
        data=Tagged(
            train="conll:wnut17train.conll",
            dev="conll:emerging.dev.conll",
            test="conll:emerging.test.annotated",
            scheme="IOB1",
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/f1",
    )
