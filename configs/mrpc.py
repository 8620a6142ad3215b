"""MRPC: do two sentences of news say the same? (Dolan & Brockett, 2005)

    launch.py train configs/mrpc.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train tsv:msr_paraphrase_train.txt --data.dev tsv:msr_paraphrase_test.txt

Those are the corpus's own files, unquoted and with a header; GLUE's train.tsv and dev.tsv are the
same, and its dev rows are a part of msr_paraphrase_train.txt.

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.84 accuracy, 0.88 F1.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="mrpc",
        task=Classify(),
        data=Texts(
            train="tsv:MRPC/msr_paraphrase_train.txt",
            dev="tsv:MRPC/msr_paraphrase_test.txt",
            text="#1 String",
            pair="#2 String",
            label="Quality",
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/f1",
    )
