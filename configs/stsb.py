"""STS-B: how alike in meaning are two sentences, from 0 to 5? (Cer et al., 2017)

    launch.py train configs/stsb.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train STS-B/train.tsv --data.dev STS-B/dev.tsv      GLUE's files

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.85 to 0.90 Pearson.
all-MiniLM-L6-v2 on 640 rows (--data.limit 640 --optim.learning-rate 1e-4): 0.718.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.regress import Regress


def config() -> Config:
    return Config(
        name="stsb",
        task=Regress(),
        data=Texts(
            train="STS-B/train.tsv",
            dev="STS-B/dev.tsv",
            text="sentence1",
            pair="sentence2",
            label="score",
            regression=True,
            limits=(0.0, 5.0),
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/pearson",
    )
