"""ARC-Challenge: which answer to a question of school science is right? (Clark et al., 2018)

    launch.py train configs/arc.py --init-from DIR         DIR: any BERT, from Hugging Face
    ... --data.train arc_challenge_dev.csv --data.dev arc_challenge_test.csv

The files have question, A, B, C, D and the answer's letter, quoted and without a header; the 28
rows whose choices are empty, or whose answer is a fifth, are left out.

Device: two CPU cores, or one GPU with the same command. Chance is 0.25; BERT-base alone is a few
points above it, larger models trained on other questions first are far better.
"""

from research.config import Config
from research.data.choices import Choices
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.choice import MultipleChoice


def config() -> Config:
    return Config(
        name="arc",
        task=MultipleChoice(),
        data=Choices(
            train="arc_challenge_dev.csv",
            dev="arc_challenge_test.csv",
            columns=("question", "A", "B", "C", "D", "answer"),
            max_length=128,
            max_bad_rows=23,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=3e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=3,
        batch_size=16,
        evals=(HeldOut(split="dev", batch_size=32),),
        track="dev/accuracy",
    )
