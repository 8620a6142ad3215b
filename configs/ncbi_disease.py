"""NCBI-disease: diseases in abstracts of PubMed (Dogan et al., 2014).

    launch.py train configs/ncbi_disease.py --init-from DIR   DIR: any BERT, from Hugging Face
    ... --data.train conll:train.txt --data.dev conll:dev.txt

Device: two CPU cores, or one GPU with the same command.
"""

from research.config import Config
from research.data.tagged import Tagged
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.tag import Tag


def config() -> Config:
    return Config(
        name="ncbi_disease",
        task=Tag(),
        data=Tagged(
            train="conll:train.txt",
            dev="conll:dev.txt",
            test="conll:test.txt",
            scheme="BIO",
            max_length=256,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/f1",
    )
