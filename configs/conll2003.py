"""CoNLL-2003: names in newswire, by a linear layer (Tjong Kim Sang & De Meulder, 2003).

    launch.py train configs/conll2003.py --init-from DIR   DIR: any BERT, from Hugging Face
    ... --data.train conll:eng.train --data.dev conll:eng.testa --data.test conll:eng.testb

Device: two CPU cores, or one GPU with the same command. With all-MiniLM-L6-v2, 1,000 sentences, one
epoch in batches of 16 and --optim.learning-rate 1e-3 expect dev F1 0.68, after 63 steps.
"""

from research.config import Config
from research.data.tagged import Tagged
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.tag import Tag


def config() -> Config:
    return Config(
        name="conll2003",
        task=Tag(),
        data=Tagged(
            train="conll:eng.train",
            dev="conll:eng.testa",
            test="conll:eng.testb",
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
