"""SST-5: how positive is a sentence of a film review, from 0 to 4? (Socher et al., 2013)

    launch.py train configs/sst5.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train tsv:ids-sst-train.csv --data.dev tsv:ids-sst-dev.csv

The files are tab-separated for all their suffix, with a header: a number, id, sentence, sentiment.

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.53 accuracy.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="sst5",
        task=Classify(),
        data=Texts(
            train="tsv:ids-sst-train.csv",
            dev="tsv:ids-sst-dev.csv",
            text="sentence",
            label="sentiment",
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
