"""BANKING77: which of 77 intents has a customer of a bank? (Casanueva et al., 2020)

    launch.py train configs/banking77.py --init-from DIR   DIR: any BERT, from Hugging Face
    ... --data.train banking_data/train.csv --data.dev banking_data/test.csv

The rows of train are sorted by intent: for fewer, take --data.shots 8 and not --data.limit.

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.93 accuracy.
all-MiniLM-L6-v2 on 616 rows (--data.shots 8 --optim.learning-rate 3e-4): 0.776.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="banking77",
        task=Classify(pool="mean", pooler=False),
        data=Texts(
            train="banking_data/train.csv",
            dev="banking_data/test.csv",
            text="text",
            label="category",
            max_length=64,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=5,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
