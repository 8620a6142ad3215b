"""Configs of classification, shrunk: trained, evaluated, asked; and opened on the real files."""

from __future__ import annotations

import json
import lzma
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bert_directory import write_bert

import launch
from research import runs
from research.config import load_config
from research.infer.loaded import load

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("GRAFT_DATA", ROOT.parent / "shared"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")

PAIRS = [
    ("the cat sat on the mat", "a cat is on a mat"),
    ("the dog ran", "nobody moved at all"),
    ("rain fell on the town", "it was wet"),
    ("a man plays a flute", "a man plays music"),
    ("stocks rose", "the market fell"),
    ("she sold the house", "a house was sold"),
]
WORDS = [text for pair in PAIRS for text in pair]


def lines(header: str, rows: list[list[str]], mark: str = "\t") -> str:
    return "".join(f"{line}\n" for line in [header] * bool(header) + [mark.join(r) for r in rows])


def quoted(rows: list[list[str]]) -> str:
    return lines("", [[f'"{field}"' for field in row] for row in rows], ",")


def twice(values: list[str]) -> list[str]:
    return [values[i % len(values)] for i in range(len(PAIRS))]


def sample(name: str, folder: Path) -> tuple[str, str]:
    """Train and dev (the same rows) in the format that a config reads."""
    one, two = zip(*PAIRS)
    columns: dict[str, Any] = {
        "cola": ("train.tsv", lines("", [["x", b, "", t] for b, t in zip(twice(["1", "0"]), one)])),
        "mrpc": (
            "train.txt",
            lines(
                "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
                [[b, "1", "2", *pair] for b, pair in zip(twice(["1", "0"]), PAIRS)],
            ),
        ),
        "mnli": (
            "train.tsv",
            lines(
                "sentence1\tsentence2\tgold_label",
                [
                    [*pair, label]
                    for pair, label in zip(
                        PAIRS, twice(["entailment", "contradiction", "neutral"])
                    )
                ],
            ),
        ),
        "ag_news": (
            "train.csv",
            quoted([[c, *pair] for c, pair in zip(twice(["1", "2", "3"]), PAIRS)]),
        ),
        "banking77": (
            "train.csv",
            lines("text,category", [list(r) for r in zip(one, twice(["lost", "fee"]))], ","),
        ),
        "clinc150": (
            "all.json",
            json.dumps(
                {
                    "val": [],
                    "train": [list(r) for r in zip(one, twice(["weather", "oos", "music"]))],
                },
                indent=1,
            ),
        ),
        "sst5": (
            "train.csv",
            lines("\tid\tsentence\tsentiment", [["0", "a", t, s] for t, s in zip(one, "012340")]),
        ),
        "chnsenticorp": (
            "train.tsv",
            lines("label\ttext_a", [list(r) for r in zip(twice(["1", "0"]), two)]),
        ),
        "stsb": (
            "train.tsv",
            lines(
                "index\tsentence1\tsentence2\tscore",
                [["0", *pair, s] for pair, s in zip(PAIRS, twice(["5.000", "0.2", "3"]))],
            ),
        ),
        "arc": (
            "train.csv",
            quoted([[*pair, c, "mat", "", k] for pair, c, k in zip(PAIRS, two, twice(["A", "C"]))]),
        ),
    }  # fmt: skip
    file, text = columns[name]
    path = folder / file
    path.write_text(text)
    if name == "chnsenticorp":
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            archive.write(path, "train.tsv")
        return f"{folder}/all.zip/train.tsv", f"{folder}/all.zip/train.tsv"
    found = f"{path}/train" if name == "clinc150" else str(path)
    prefix = "tsv:" if name in ("mrpc", "sst5") else ""
    return prefix + found, prefix + found


PAIR_OF = {
    "mrpc": ("#1 String", "#2 String"),
    "mnli": ("sentence1", "sentence2"),
    "ag_news": ("title", "description"),
    "stsb": ("sentence1", "sentence2"),
}
SCORES = {
    "cola": {"mcc", "threshold", "auroc", "f1"},
    "mrpc": {"f1", "accuracy", "pr_auc"},
    "clinc150": {"outside_auroc", "outside_auroc_by_max", "in_scope_accuracy"},
    "stsb": {"pearson", "spearman", "absolute_error"},
    "arc": {"accuracy", "loss"},
}
CONFIGS = (
    "cola", "mrpc", "mnli", "ag_news", "banking77", "clinc150", "sst5", "chnsenticorp", "stsb",
    "arc",
)  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights as a Hugging Face directory."""
    return write_bert(tmp_path_factory.mktemp("bert"), WORDS)


def train(name: str, bert: Path, folder: Path, *more: str) -> Path:
    """The run of a config on its sample, two steps long."""
    source, dev = sample(name, folder)
    flags = ["--init-from", str(bert), "--data.train", source, "--data.dev", dev, "--epochs", "1"]
    flags += ["--batch-size", "4", "--data.shapes", "1", "--data.max-length", "32", *more]
    if name == "clinc150":
        flags += ["--data.test", ""]
    arguments = ["train", f"configs/{name}.py", "--workdir", str(folder / "runs"), *flags]
    assert launch.main(arguments) == 0
    return folder / "runs" / name


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def ask(run: Path, rows: list[Any], folder: Path) -> list[dict[str, Any]]:
    """What `predict` answers."""
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out.jsonl"
    files = ["--input", str(folder / "in.jsonl"), "--output", str(out)]
    assert launch.main(["predict", str(run), *files]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_evaluates_and_predicts(
    name: str, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(name, bert, tmp_path)
    result = runs.read_result(run)
    assert result is not None
    found = {metric.removeprefix("dev/") for metric in result["metrics"]}
    assert found >= SCORES.get(name, {"accuracy", "macro_f1"})
    capsys.readouterr()
    assert launch.main(["evaluate", str(run)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.keys() <= result["metrics"].keys()
    for metric, value in again.items():
        assert value == pytest.approx(result["metrics"][metric], nan_ok=True), metric
    texts = PAIR_OF.get(name)
    data: Any = load(run).config.data
    if name == "arc":
        rows = [{"question": a, "A": b, "B": "no", "C": "yes"} for a, b in PAIRS]
    else:
        rows = [dict(zip(texts or (data.text,), pair)) for pair in PAIRS]
    answers = ask(run, rows, tmp_path)
    assert len(answers) == len(rows)
    for answer in answers:
        if name == "stsb":
            assert list(answer) == ["score"] and isinstance(answer["score"], float)
            continue
        told = "choice" if name == "arc" else "label"
        assert list(answer) == [told, "probabilities"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert answer[told] in answer["probabilities"]
    page = (run / "report.html").read_text()
    assert ("Largest errors" if name == "stsb" else "accuracy") in page
    assert name in ("stsb", "arc") or "PR-AUC" in page


def test_a_tuned_threshold_is_kept_and_predicts(bert: Path, tmp_path: Path) -> None:
    run = train("cola", bert, tmp_path)
    result = runs.read_result(run)
    assert result is not None
    threshold = result["metrics"]["dev/threshold"]
    assert result["details"]["dev"]["tuned"] == {"threshold": threshold}
    loaded = load(run)
    assert loaded.task.threshold == threshold
    answers = ask(run, [{"sentence": text} for text in WORDS], tmp_path)
    for answer in answers:
        assert (answer["label"] == "1") == (answer["probabilities"]["1"] >= threshold)


MULTILABEL = """
from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.tasks.multilabel import MultiLabel

def config():
    data = Texts(train="train.tsv", label="topics", multilabel=True, separator=";")
    evals = (HeldOut(split="dev", tune=True),)
    return Config(name="topics", task=MultiLabel(label_weights="balanced"), data=data,
                  evals=evals, epochs=1, track="dev/micro_f1")
"""


def test_labels_of_which_a_text_has_any_number(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "topics.py").write_text(MULTILABEL)
    cells = ["animal;home", "animal", "", "music", '["home", "money"]', "home; money"]
    rows = [[text, cell] for (text, _), cell in zip(PAIRS, cells)]
    (tmp_path / "train.tsv").write_text(lines("text\ttopics", rows))
    objects = [
        {"text": t, "topics": json.loads(c) if c.startswith("[") else c.replace(" ", "").split(";")}
        for t, c in rows
        if c
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    files = ["--data.train", str(tmp_path / "train.tsv"), "--data.dev", str(tmp_path / "dev.jsonl")]
    flags = [*files, "--init-from", str(bert), "--batch-size", "4"]
    arguments = ["train", str(tmp_path / "topics.py"), "--workdir", str(tmp_path / "runs"), *flags]
    assert launch.main(arguments) == 0
    run = tmp_path / "runs" / "topics"
    result = runs.read_result(run)
    assert result is not None
    assert {"dev/micro_f1", "dev/macro_f1", "dev/exact_match", "dev/pr_auc"} <= set(
        result["metrics"]
    )
    task = load(run).task
    assert task.labels == ("animal", "home", "money", "music")
    assert (task.label_counts, task.train_rows) == ((2, 3, 2, 1), 6)
    assert task.thresholds == tuple(result["details"]["dev"]["tuned"]["thresholds"])
    assert "PR-AUC" in (run / "report.html").read_text()
    for answer in ask(run, [text for text, _ in PAIRS], tmp_path):
        over = [k for k, p in answer["probabilities"].items() if p >= task.thresholds[0]]
        assert answer["labels"] == over


REAL = {
    "cola": ("glue/CoLA/in_domain_train.tsv.xz", "glue/CoLA/in_domain_dev.tsv", 8551, 527, 2),
    "mrpc": ("tsv:glue/MRPC/msr_paraphrase_train.txt.xz",
             "tsv:glue/MRPC/msr_paraphrase_test.txt.xz", 4076, 1725, 2),
    "mnli": ("robustness/cad_nli/revised_combined/dev.tsv", "robustness/cad_nli/original/dev.tsv",
             800, 200, 3),
    "ag_news": ("news/ag_news_csv/test.csv.xz", "news/ag_news_csv/test.csv.xz", 7600, 7600, 4),
    "banking77": ("intent/banking77/train.csv.xz", "intent/banking77/test.csv.xz", 10003, 3080, 77),
    "clinc150": ("intent/clinc150/data_full.json.xz/train", "intent/clinc150/data_full.json.xz/val",
                 15000, 3000, 150),
    "sst5": ("tsv:sst5/ids-sst-train.csv.xz", "tsv:sst5/ids-sst-dev.csv.xz", 8544, 1101, 5),
    "chnsenticorp": ("chnsenticorp.zip/train.tsv", "chnsenticorp.zip/dev.tsv", 9600, 1200, 2),
    "stsb": ("glue/STS-B/train.tsv.xz", "glue/STS-B/dev.tsv.xz", 5749, 1500, 0),
    "arc": ("qa/arc_challenge/arc_challenge_dev.csv.xz", "qa/arc_challenge/arc_challenge_test.csv",
            1096, 294, None),
}  # fmt: skip


@real
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_the_real_files(name: str, tmp_path: Path) -> None:
    *sources, train_rows, dev_rows, labels = REAL[name]
    found = [
        s.replace("tsv:", f"tsv:{DATA}/data/") if ":" in s else f"{DATA}/data/{s}" for s in sources
    ]
    words = "chinese" if name == "chnsenticorp" else "uncased"
    flags = ["--data.train", found[0], "--data.dev", found[1], "--data.cache", str(tmp_path)]
    flags += ["--data.tokenizer", str(DATA / f"ckpt/tokenizers/bert-base-{words}")]
    if name == "clinc150":
        flags[1] = f"{found[0]},{found[0].removesuffix('train')}oos_train"
        train_rows, labels = 15100, 151
    data = load_config(f"configs/{name}.py", flags).data
    train, dev = data.open("train", 32, steps=4), data.open("dev", 128)
    assert (train.rows, dev.rows) == (train_rows, dev_rows)
    facts = data.facts()
    if labels:
        assert len(facts["labels"]) == labels
        assert sum(facts["label_counts"]) == train_rows
        assert min(facts["label_counts"]) > 0
    if name == "stsb":
        assert facts["label_mean"] == pytest.approx(2.7010, abs=1e-3)
    assert train.batch(3)["weights"].sum() >= 32


@real
def test_a_sample_of_snli_has_no_header(tmp_path: Path) -> None:
    source = f"{DATA}/data/glue/SNLI_sample/snli.tsv"
    flags = ["--data.train", source, "--data.cache", str(tmp_path)]
    flags += ["--data.columns", "gold_label", "sentence1", "sentence2"]
    flags += ["--data.tokenizer", str(DATA / "ckpt/tokenizers/bert-base-uncased")]
    data = load_config("configs/mnli.py", flags).data
    assert data.open("train", 32).rows == 1000
    assert data.facts()["label_counts"] == (367, 322, 311)
    with lzma.open(DATA / "data/glue/MNLI_sample/mnli_matched.tsv.xz", "rt") as file:
        assert file.readline().startswith("entailment\t")
