"""AG News: is news about the world, sports, business or technology? (Zhang et al., 2015)

    launch.py train configs/ag_news.py --init-from DIR     DIR: any BERT, from Hugging Face
    ... --data.train ag_news_csv/train.csv --data.dev ag_news_csv/test.csv

The files have a class from 1 to 4, a title and a description, quoted and without a header. Title
and description are read as a pair.

Device: two CPU cores, or one GPU with the same command. BERT-base reaches 0.94 accuracy.
all-MiniLM-L6-v2 on 640 rows (--epochs 2 --optim.learning-rate 1e-4): 0.847 of 1,000 others.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.classify import Classify


def config() -> Config:
    return Config(
        name="ag_news",
        task=Classify(),
        data=Texts(
            train="ag_news_csv/train.csv",
            dev="ag_news_csv/test.csv",
            text="title",
            pair="description",
            label="class",
            columns=("class", "title", "description"),
            max_length=128,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=5e-5, schedule="linear", warmup=0.1, weight_decay=0.01),
        epochs=1,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/accuracy",
    )
