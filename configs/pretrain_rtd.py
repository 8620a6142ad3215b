"""Replaced-token detection, ELECTRA's pre-training, on any text (Clark et al., 2020).

    launch.py train configs/pretrain_rtd.py                           the standard library's English
    ... --data.train 'corpus/*.txt.gz' --data.dev held-out.txt        your own, one passage a line
    launch.py train configs/sst2.py --init-from runs/pretrain_rtd     the discriminator fine-tuned
    launch.py export runs/pretrain_rtd --to hf DIR                    it, as ElectraForPreTraining

Device: two CPU cores, a few minutes. One GPU: the same with --batch-size 512 --steps 20000
--data.max-length 128. A pod: besides, --mesh.data -1 --mesh.fsdp 8. Read detection_recall beside
detection_accuracy: to call every token an original is right for all but `replaced` of them.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.replaced import ReplacedTokens


def config() -> Config:
    return Config(
        name="pretrain_rtd",
        task=ReplacedTokens(
            backbone=Transformer(
                Spec(
                    vocab_size=6000,
                    width=128,
                    depth=4,
                    heads=4,
                    hidden=512,
                    max_positions=128,
                    token_types=2,
                    pooler="gelu",
                )
            ),
            generator=Transformer(
                Spec(vocab_size=6000, width=128, depth=1, heads=1, hidden=128, max_positions=128)
            ),
        ),
        data=Texts(
            train="stdlib:passages",
            dev="stdlib:areas-dev",
            label=None,
            tokenizer="stdlib:6000",
            max_length=64,
            long="split",
        ),
        optim=Optim(learning_rate=1e-3, warmup=0.1, weight_decay=0.01),
        steps=400,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        eval_every=200,
        log_every=20,
    )
