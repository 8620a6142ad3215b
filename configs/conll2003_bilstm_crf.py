"""CoNLL-2003 by a BiLSTM-CRF over words and characters (Lample et al., 2016; Ma & Hovy, 2016).

    launch.py train configs/conll2003_bilstm_crf.py --data.vectors glove.6B.100d.txt
    ... --data.train conll:eng.train --data.dev conll:eng.testa --data.test conll:eng.testb

Without `--data.vectors` the words start from random vectors. Device: two CPU cores, or one GPU with
the same command. With `--epochs 5` and no vectors expect dev F1 0.77, 0.87 and 0.88 after the first
three, about 40 s each on two busy cores.
"""

from research.config import Config
from research.data.tagged import Tagged
from research.evaluate import HeldOut
from research.models.recurrent import Recurrent, RecurrentSpec
from research.optim import Optim
from research.tasks.tag import TagCRF

WORDS = 30_000


def config() -> Config:
    spec = RecurrentSpec(vocab_size=WORDS, word_width=100, filters=30, width=200, dropout=0.5)
    return Config(
        name="conll2003_bilstm_crf",
        task=TagCRF(backbone=Recurrent(spec), dropout=0.0),
        data=Tagged(
            train="conll:eng.train",
            dev="conll:eng.testa",
            test="conll:eng.testb",
            scheme="IOB1",
            target="IOBES",
            tokenizer=f"words:{WORDS}",
            characters=20,
            max_length=256,
        ),
        optim=Optim(learning_rate=3e-3, schedule="linear", warmup=0.05, weight_decay=1e-4),
        epochs=20,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/f1",
    )
