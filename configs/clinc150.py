"""CLINC150: which of 150 intents, or none of them? (Larson et al., 2019)

    launch.py train configs/clinc150.py --init-from DIR    DIR: any BERT, from Hugging Face
    ... --data.train D/train,D/oos_train --data.dev D/val,D/oos_val        D: data_full.json

The file is one JSON object; a path goes on into it to a split. The 100 rows of oos_train are a
class like any other, re-sampled a little (--data.resample): what is out of scope is told by the
probability of that class (outside_auroc), beside which outside_auroc_by_max needs no such class.

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.96 accuracy in scope
and 0.46 to 0.66 recall of what is outside.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.scope import ScopedClassify


def config() -> Config:
    return Config(
        name="clinc150",
        task=ScopedClassify(pool="mean", pooler=False, outside="oos"),
        data=Texts(
            train="data_full.json/train,data_full.json/oos_train",
            dev="data_full.json/val,data_full.json/oos_val",
            test="data_full.json/test,data_full.json/oos_test",
            text="text",
            label="label",
            columns=("text", "label"),
            resample=0.25,
            max_length=64,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=5,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
