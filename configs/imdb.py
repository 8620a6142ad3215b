"""IMDb: is a review of a film positive? Long texts (Maas et al., 2011).

    launch.py train configs/imdb.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train train.tsv --data.dev dev.tsv          your own files, columns text, label

Device: one GPU, or two CPU cores for a part of it (--data.limit 1000). A review has 230 words on
average; those beyond 256 tokens are cut.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="imdb",
        task=Classify(),
        data=Texts(
            train="tfds:imdb_reviews/plain_text:train",
            dev="tfds:imdb_reviews/plain_text:test",
            text="text",
            label="label",
            max_length=256,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=1,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
