"""CoNLL-2003 by a CRF on a Transformer: tags are chosen together (Lample et al., 2016).

    launch.py train configs/conll2003_crf.py --init-from DIR   DIR: any BERT, from Hugging Face
    ... --data.train conll:eng.train --data.dev conll:eng.testa --data.test conll:eng.testb

Device: two CPU cores, or one GPU with the same command.
"""

from research.config import Config
from research.data.tagged import Tagged
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.tag import TagCRF


def config() -> Config:
    return Config(
        name="conll2003_crf",
        task=TagCRF(),
        data=Tagged(
            train="conll:eng.train",
            dev="conll:eng.testa",
            test="conll:eng.testb",
            scheme="IOB1",
            target="IOBES",
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/f1",
    )
