"""SQuAD 2.0: which words of a passage answer a question, if any? (Rajpurkar et al., 2018)

    launch.py train configs/squad2.py --init-from DIR      DIR: any BERT, from Hugging Face
    ... --data.train dev-v2.0.json.xz                      one file: a fifth of its articles is dev
    ... --data.train train-v2.0.json --data.dev dev-v2.0.json

Device: one GPU. On two CPU cores all-MiniLM-L6-v2 learns XQuAD's 942 English questions, all of
which have answers, in five epochs at 5e-4 (148 steps, 13 minutes on a busy machine): EM 0.322 and
F1 0.446 on the 258 of other articles. 1,000 questions of SQuAD 2.0, half of them without an answer,
teach it no more in an epoch than how many have none: F1 0.489, which is that of never answering.
"""

from research.config import Config
from research.data.questions import Questions
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.answer import Answer


def config() -> Config:
    return Config(
        name="squad2",
        task=Answer(),
        data=Questions(train="train-v2.0.json", holdout=0.2, max_length=384, stride=128),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=2,
        batch_size=32,
        evals=(HeldOut(split="dev", batch_size=32, tune=True),),
        save_every=500,
        track="dev/f1",
    )
