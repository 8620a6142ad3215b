"""MNLI, SNLI: does a sentence follow from another, or contradict it? (Williams et al., 2018)

    launch.py train configs/mnli.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train MNLI/train.tsv --data.dev MNLI/dev_matched.tsv        GLUE's files

SNLI's jsonl files have the same columns; its rows labelled "-" have no label, so that it takes
--data.max-bad-rows 800. Files without a header: --data.columns gold_label sentence1 sentence2.

Device: one GPU; MNLI has 392,702 rows. BERT-base reaches 0.84 accuracy.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="mnli",
        task=Classify(),
        data=Texts(
            train="MNLI/train.tsv",
            dev="MNLI/dev_matched.tsv",
            text="sentence1",
            pair="sentence2",
            label="gold_label",
            labels=("entailment", "neutral", "contradiction"),
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=3e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=2,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
