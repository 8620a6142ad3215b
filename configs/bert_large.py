"""BERT-large from scratch by masked language modelling on packed blocks (Devlin et al., 2019).

    launch.py train configs/bert_large.py --data.train 'corpus/*.txt.gz' --data.dev held-out.txt
    launch.py plan configs/bert_large.py --topology v5e-16            what it takes; no data needed

Device: a slice of accelerators; --batch-size is over all of them. 336M parameters and their
optimizer state are 5.4 GB, so that every chip holds them (--mesh.data -1). Corpora of BERT's size
take some 100k steps; at half of them expect dev/pseudo_perplexity below 6.
"""

from research.config import Config
from research.data.corpus import Corpus
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.lm import MaskedLM


def config() -> Config:
    return Config(
        name="bert_large",
        task=MaskedLM(
            backbone=Transformer(
                Spec(
                    vocab_size=30522,
                    width=1024,
                    depth=24,
                    heads=16,
                    hidden=4096,
                    max_positions=512,
                    scan=True,
                )
            )
        ),
        data=Corpus(
            train="corpus/*.txt.gz",
            dev="held-out.txt",
            tokenizer="bert-large-uncased",
            max_length=512,
        ),
        optim=Optim(learning_rate=4e-4, warmup=0.06, weight_decay=0.01),
        steps=100_000,
        batch_size=128,
        evals=(HeldOut(split="dev"),),
        eval_every=5000,
    )
