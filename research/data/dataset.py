"""What all data sets share: splits, a tokenizer, and how their examples become batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.data.batches import Arrangement, Batches, Examples
from research.data.pack import Layout
from research.data.sources import signature
from research.data.vocabulary import Vocabulary, tokenizer_of
from research.errors import ConfigError

Signature = tuple[tuple[str, int, int], ...]
SPLITS = ("train", "dev", "test")
BLANK = "the text has no tokens"


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Rows of files as examples; a subclass says what a row is.

    `train`, `dev` and `test` are sources as for `read_rows`. `tokenizer` as for `load_tokenizer`;
    None takes that of the config's `init_from`. An example has at most `max_length` tokens. Of
    `train` only the first `limit` rows are used. `row_length` is T, chosen by cost where None, and
    `shapes` the most values of B. Up to `max_bad_rows` bad rows of a split are left out. `cache`:
    where tokens are kept, by default `$GRAFT_CACHE` or ~/.cache/graft.
    """

    train: str = ""
    dev: str = ""
    test: str = ""
    tokenizer: str | None = None
    max_length: int = 128
    limit: int | None = None
    layout: Layout = "packed"
    row_length: int | None = None
    shapes: int = 3
    max_bad_rows: int = 0
    cache: str = ""

    @abstractmethod
    def examples(self, split: str) -> Examples:
        """The examples of a split.

        Raises DataError "file:line: reason", and ConfigError for settings that do not fit.
        """

    @abstractmethod
    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """Examples of new rows, each a text or a dict, without labels; nothing is cached.

        Raises DataError naming the row that is none; `where` is the file and line of the first.
        """

    def open(
        self,
        split: str,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int = 0,
        multiple: int = 1,
        host: tuple[int, int] = (0, 1),
    ) -> Batches:
        """A shuffled stream of `steps` steps, or without them one pass in the order of the file.

        Raises what `examples` does.
        """
        return self.batches(split, steps)(
            self.examples(split),
            batch_size,
            steps=steps,
            seed=seed,
            multiple=multiple,
            host=host,
            arrangement=self.arrangement,
        )

    def batches(self, split: str, steps: int | None) -> type[Batches]:
        """How the examples of a split become batches."""
        return Batches

    def encode_rows(
        self,
        rows: Sequence[Any],
        batch_size: int = 128,
        *,
        multiple: int = 1,
        where: tuple[str, int] = ("rows", 1),
    ) -> Batches:
        """One pass over new rows, for predictions: see `new_examples`."""
        examples = self.new_examples(rows, where)
        return Batches(examples, batch_size, multiple=multiple, arrangement=self.arrangement)

    def facts(self) -> dict[str, object]:
        """What a task may want to know; here of the tokenizer: see `Vocabulary.facts`."""
        return self.vocabulary.facts()

    @property
    def vocabulary(self) -> Vocabulary:
        """Facts of the tokenizer."""
        return tokenizer_of(self.needed_tokenizer())[1]

    @property
    def arrangement(self) -> Arrangement:
        """How examples become arrays."""
        return Arrangement(layout=self.layout, row_length=self.row_length, shapes=self.shapes)

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        self.check_positive("limit", "row_length", "shapes")

    def check_positive(self, *names: str) -> None:
        """Raises ConfigError for a field that is set and below 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} is {value}, but must be positive")

    def needed_tokenizer(self) -> str:
        """The tokenizer. Raises ConfigError where none is set."""
        if self.tokenizer is None:
            raise ConfigError("data.tokenizer is not set; expected a directory, a file or an id")
        return self.tokenizer

    def source(self, split: str) -> str:
        """What a split is read from. Raises ConfigError for one that is not set."""
        if split not in SPLITS:
            raise ConfigError(f"data: there is no split {split!r}; there are {', '.join(SPLITS)}")
        source: str = getattr(self, split)
        if not source:
            raise ConfigError(f"data.{split} is not set; expected a path")
        return source

    def signature(self, split: str) -> Signature:
        """Equal while the files of a split are unchanged."""
        return signature(self.source(split))
