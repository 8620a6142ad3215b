"""The token cache: whole or not there, rebuilt when a byte is wrong, safe with many writers."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from research.data import cache
from research.errors import StorageError

ARRAYS = {
    "tokens": np.arange(1000, dtype=np.int32),
    "empty": np.zeros(0, np.int64),
    "types": np.ones(7, np.uint8),
}
FACTS = {"truncated": 3}


class Maker:
    """Makes the arrays and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS, FACTS


def check(found):
    arrays, facts = found
    assert facts == FACTS
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_made_once_then_mapped(tmp_path):
    make = Maker()
    for _ in range(3):
        found = cache.load_or_make(tmp_path / "key", make)
        check(found)
    assert make.calls == 1
    assert isinstance(found[0]["tokens"], np.memmap)
    assert not found[0]["tokens"].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def damages():
    """Every kind of damage to every file."""
    for name in ("tokens.npy", "empty.npy", "types.npy", "meta.json"):
        for kind in ("delete", "empty", "truncate", "extend", "flip first", "flip last"):
            yield name, kind


@pytest.mark.parametrize(("name", "kind"), list(damages()))
def test_a_damaged_folder_is_made_again(tmp_path, name, kind):
    make = Maker()
    cache.load_or_make(tmp_path / "key", make)
    file = tmp_path / "key" / name
    raw = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
    else:
        if kind.startswith("flip"):
            raw[0 if kind.endswith("first") else -1] ^= 1
        changed = {"empty": b"", "truncate": raw[:-1], "extend": raw + b"!"}.get(kind, raw)
        file.write_bytes(bytes(changed))
    assert cache.load(tmp_path / "key") is None
    check(cache.load_or_make(tmp_path / "key", make))
    assert make.calls == 2
    assert cache.load(tmp_path / "key") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_changed_facts_are_damage(tmp_path):
    cache.load_or_make(tmp_path / "key", Maker())
    file = tmp_path / "key" / "meta.json"
    meta = json.loads(file.read_text())
    meta["facts"]["truncated"] = 4
    file.write_text(json.dumps(meta))
    assert cache.load(tmp_path / "key") is None


@pytest.mark.parametrize("damaged", [False, True])
def test_many_writers_at_once_leave_one_whole_folder(tmp_path, damaged):
    folder = tmp_path / "key"
    if damaged:
        folder.mkdir()
        (folder / "meta.json").write_text("{}")
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: cache.load_or_make(folder, Maker()), range(32)):
            check(found)
    check(cache.load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("moment", ["save", "fsync", "rename"])
def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch, moment):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        target = {"save": "numpy.save", "fsync": "os.fsync", "rename": "pathlib.Path.rename"}
        patch.setattr(target[moment], fail)
        with pytest.raises(StorageError, match=r"cannot keep the tokens there.*No space left"):
            cache.load_or_make(tmp_path / "key", Maker())
    assert list(tmp_path.iterdir()) == []
    check(cache.load_or_make(tmp_path / "key", Maker()))


def test_what_killed_writers_left_is_swept_after_a_day(tmp_path):
    old, new = tmp_path / ".making-old", tmp_path / ".making-new"
    for left in (old, new):
        left.mkdir()
        (left / "tokens.npy").write_bytes(b"half")
    os.utime(old, times=(time.time() - 2 * cache.DAY,) * 2)
    cache.load_or_make(tmp_path / "key", Maker())
    assert not old.exists()
    assert new.exists()


def test_the_directory_is_the_given_one_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    assert cache.directory() == tmp_path / "tokens"
    assert cache.directory("/elsewhere").as_posix() == "/elsewhere/tokens"
    monkeypatch.delenv("GRAFT_CACHE")
    assert cache.directory().parts[-3:] == (".cache", "graft", "tokens")
