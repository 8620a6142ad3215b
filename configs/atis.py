"""ATIS: intent and slots of questions about flights, learned together (Chen et al., 2019).

    launch.py train configs/atis.py --init-from DIR        DIR: any BERT, from Hugging Face
    ... --data.train txt:train/seq.in --data.dev txt:dev/seq.in

The files are those of JointBERT: seq.in, with seq.out and label beside it. Intents of dev that
train has not are named below: they can only be missed. Device: two CPU cores, or one GPU with the
same command. With all-MiniLM-L6-v2, --optim.learning-rate 5e-4 and --epochs 3 expect on dev slot F1
0.961 (0.954 to 0.967) and intent accuracy 0.971, on test 0.946 and 0.932, after 71 s.
"""

from research.config import Config
from research.data.tagged import Tagged
from research.evaluate import HeldOut
from research.optim import Optim
from research.strategies import SeenWords
from research.tasks.intent import IntentSlots


def config() -> Config:
    return Config(
        name="atis",
        task=IntentSlots(),
        data=Tagged(
            train="txt:train/seq.in",
            dev="txt:dev/seq.in",
            test="txt:test/seq.in",
            columns=("tokens",),
            beside=("tags=seq.out", "intent=label"),
            intent="intent",
            more_types=("booking_class", "compartment", "flight", "stoploc.airport_code"),
            more_intents=(
                "atis_airfare#atis_flight",
                "atis_airfare#atis_flight_time",
                "atis_day_name",
                "atis_flight#atis_airline",
                "atis_flight_no#atis_airline",
            ),
            max_length=64,
        ),
        adapt=SeenWords(),
        optim=Optim(learning_rate=1e-4, schedule="linear", warmup=0.1),
        epochs=5,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        track="dev/exact_match",
    )
