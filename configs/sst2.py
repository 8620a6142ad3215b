"""SST-2: is a sentence of a film review positive? (Socher et al., 2013; Wang et al., 2019)

    launch.py train configs/sst2.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train train.tsv --data.dev dev.tsv          your own files, columns sentence, label

Device: two CPU cores, or one GPU with the same command. With all-MiniLM-L6-v2, 8,192 rows and one
epoch expect dev accuracy 0.82 to 0.84; the README has times.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="sst2",
        task=Classify(),
        data=Texts(
            train="tfds:glue/sst2:train",
            dev="tfds:glue/sst2:validation",
            text="sentence",
            label="label",
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.0, weight_decay=0.0),
        epochs=1,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
