"""Sentence embeddings from pairs of texts and in-batch negatives (Reimers & Gurevych, 2019).

    launch.py train configs/embed_pairs.py --init-from DIR       DIR: any BERT, from Hugging Face
    ... --data.train pairs.tsv --data.dev sts-dev.tsv            anchor, positive; sentence1,
                                                                 sentence2, score

By default the entailed pairs of SNLI (Bowman et al., 2015) and STS-B's dev split (Cer et al.,
2017). Hard negatives are further columns: --data.negatives negative. More negatives than memory
holds: raise batch_size and task.chunks together. Device: two CPU cores, or one GPU with the same
command; read dev/spearman.
"""

from research.config import Config
from research.data.pairs import Pairs
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.embed import InfoNCE


def config() -> Config:
    return Config(
        name="embed_pairs",
        task=InfoNCE(),
        data=Pairs(
            train="tfds:snli:train",
            dev="tfds:glue/stsb:validation",
            anchor="premise",
            positive="hypothesis",
            where=("label", "entailment"),
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=2e-5, schedule="linear", weight_decay=0.0),
        epochs=1,
        batch_size=64,
        evals=(HeldOut(split="dev"),),
        track="dev/spearman",
    )
