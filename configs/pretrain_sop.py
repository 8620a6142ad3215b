"""Masked LM with sentence-order prediction, or BERT's next sentence, on documents of any text.

    launch.py train configs/pretrain_sop.py                           the standard library's English
    ... --data.objective next                                         next sentence (Devlin et al.)
    ... --data.train 'corpus/*.txt.gz' --data.dev held-out.txt        your own, one document a line

Sentence order is ALBERT's objective (Lan et al., 2020). Device: two CPU cores, a few minutes. One
GPU: the same with --batch-size 512 --steps 20000 --data.max-length 256 --data.copies 10. A pod:
besides, --mesh.data -1 --mesh.fsdp 8.
"""

from research.config import Config
from research.data.segments import Segments
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.sentence_order import SentenceOrder


def config() -> Config:
    return Config(
        name="pretrain_sop",
        task=SentenceOrder(
            backbone=Transformer(
                Spec(
                    vocab_size=6000,
                    width=128,
                    depth=4,
                    heads=4,
                    hidden=512,
                    max_positions=128,
                    token_types=2,
                )
            ),
            unit="word",
        ),
        data=Segments(
            train="stdlib:passages",
            dev="stdlib:areas-dev",
            tokenizer="stdlib:6000",
            objective="order",
            max_length=96,
            copies=4,
            words=True,
        ),
        optim=Optim(learning_rate=1e-3, warmup=0.1, weight_decay=0.01),
        steps=400,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        eval_every=200,
        log_every=20,
    )
