"""CoLA: is a sentence acceptable English? (Warstadt et al., 2019; Wang et al., 2019)

    launch.py train configs/cola.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train in_domain_train.tsv --data.dev in_domain_dev.tsv      the corpus's own files

The files have four columns and no header; GLUE's train.tsv and dev.tsv are the same. The threshold
is tuned for Matthews' correlation on dev, which is reported at it.

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.52 to 0.60 MCC.
all-MiniLM-L6-v2 learns nothing from the first 640 rows (0.11 MCC, 0.51 AUROC), nor from all in one
epoch at 1e-4; of three at --optim.learning-rate 2e-4 expect 0.27 on in_domain_dev.tsv.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="cola",
        task=Classify(tune_for="mcc"),
        data=Texts(
            train="cola_public/raw/in_domain_train.tsv",
            dev="cola_public/raw/in_domain_dev.tsv,cola_public/raw/out_of_domain_dev.tsv",
            text="sentence",
            label="label",
            columns=("source", "label", "star", "sentence"),
            max_length=64,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        evals=(HeldOut(split="dev", tune=True),),
        track="dev/mcc",
    )
