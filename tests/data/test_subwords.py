"""Trained tokenizers: the same from the same texts, loaded by all, and nothing lost in bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import launch
from research.data import stdlib
from research.data.subwords import train
from research.data.vocabulary import Vocabulary, load_tokenizer
from research.errors import ConfigError

ROOT = Path(__file__).parents[2]
TEXTS = [row["text"] for row in stdlib.passages()[:250]]
KINDS = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subwords")
    (path / "texts.txt").write_text("\n".join(TEXTS))
    for kind in KINDS:
        train(kind, TEXTS, 600, path / kind)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_trains_the_same_files(folder: Path, tmp_path: Path, kind: str) -> None:
    arguments = ["tokenizer", str(folder / "texts.txt"), "--kind", kind, "--size", "600"]
    command = [sys.executable, str(ROOT / "launch.py"), *arguments, "--to", str(tmp_path / "made")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "600 tokens" in said
    names = ("tokenizer.json", "tokenizer_config.json")
    assert all(
        (tmp_path / "made" / name).read_bytes() == (folder / kind / name).read_bytes()
        for name in names
    )


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_makes_the_same_tokens(folder: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder / kind))
    ours = load_tokenizer(str(folder / kind))
    for text in [*TEXTS[:20], "Naïve café – 雪 \n 😀"]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
    facts = Vocabulary.of(ours)
    assert facts.size == 600
    assert (facts.cls, facts.sep) == (theirs.cls_token_id, theirs.sep_token_id)
    assert (facts.pad, facts.mask) == (theirs.pad_token_id, theirs.mask_token_id)


def test_bytes_spell_any_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "bpe" / "tokenizer.json"))

    @settings(max_examples=300, deadline=None)
    @given(
        st.text()
        | st.lists(st.sampled_from([*TEXTS[:5], "<s>", "\x00", "\u2028", " "])).map("".join)
    )
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()


def test_unigram_gives_its_own_prose_back_and_scores_descend(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder / "unigram"))
    for text in TEXTS[:50]:
        if text.isascii():
            assert tokenizer.decode(tokenizer.encode(text).ids) == text
    scores = [s for _, s in json.loads(tokenizer.to_str())["model"]["vocab"][5:]]
    assert scores == sorted(scores, reverse=True)


def test_more_tokens_make_shorter_texts(folder: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        small = load_tokenizer(str(train(kind, TEXTS, 400, tmp_path / kind)))
        large = load_tokenizer(str(folder / kind))
        lengths = [sum(len(t.encode(x).ids) for x in TEXTS) for t in (small, large)]
        assert lengths[1] < lengths[0]


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(ConfigError, match="10 tokens"):
            train(kind, TEXTS, 10, tmp_path / "made")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        train("bpe", TEXTS, 400, tmp_path / "file")
    for arguments, code in (
        (["--kind", "bpe", "--size", "400"], 2),
        ([str(folder / "texts.txt"), "--kind", "char", "--size", "400", "--to", "x"], 2),
        ([str(tmp_path / "none.txt"), "--kind", "bpe", "--size", "400", "--to", "x"], 7),
        ([str(folder / "texts.txt"), "--kind", "bpe", "--to", "x"], 2),
    ):
        assert launch.main(["tokenizer", *arguments]) == code
