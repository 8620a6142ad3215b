"""Permutation-language-model pre-training of a small XLNet on any text (Yang et al., 2019).

    launch.py train configs/pretrain_plm.py                           the standard library's English
    ... --data.train 'corpus/*.txt.gz' --data.dev held-out.txt        your own, one passage a line
    ... --data.tokenizer DIR --task.backbone.spec.vocab-size 32000    with a tokenizer of your own
    ... --task.spans 5                                                stretches of 1 to 5 tokens

Device: two CPU cores, a few minutes. One GPU: the same with --batch-size 1024 --steps 20000. A pod:
on every host --mesh.fsdp 8 --batch-size 8192 --data.max-length 512 --task.backbone.spec.width 768
--task.backbone.spec.depth 12 --task.backbone.spec.heads 12 --task.backbone.spec.hidden 3072
--task.backbone.spec.scan True --task.backbone.spec.remat True. Expect the training loss to fall
from 9.0 to 7.3 in the first 20 steps. A classifier starts from it by --init-from
runs/pretrain_plm --task.pool last.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.xlnet import XLNet, XLNetSpec
from research.optim import Optim
from research.tasks.permutation import PermutationLM


def config() -> Config:
    return Config(
        name="pretrain_plm",
        task=PermutationLM(
            backbone=XLNet(XLNetSpec(vocab_size=6000, width=128, depth=4, heads=4, hidden=512))
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
        steps=500,
        batch_size=64,
        evals=(HeldOut(split="dev"),),
        eval_every=250,
        log_every=20,
    )
