"""A causal language model of a run or of a Hugging Face directory, ready to go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import Tokenizer

from research.data.tokenize import Template
from research.data.vocabulary import Vocabulary, load_tokenizer
from research.errors import ConfigError
from research.infer import loaded
from research.initialize import is_run
from research.models import pretrained
from research.models.pretrained.directory import read_json
from research.models.products import compute_dtype
from research.models.transformer import Transformer
from research.tasks.causal import CausalLM


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal trunk with its weights and its tokenizer.

    `before` are the tokens that begin every text, or that stand for an empty one where
    `always_before` is false; `eos` are those that end one. `name` is where it comes from.
    """

    name: str
    trunk: Transformer
    params: Any
    tokenizer: Tokenizer
    before: tuple[int, ...]
    always_before: bool
    eos: tuple[int, ...]

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt. Raises ConfigError where it has none, or leaves no room for more."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if self.always_before or not ids:
            ids = [*self.before, *ids]
        most = self.trunk.spec.max_positions
        if len(ids) >= most:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, but {self.name} has {most} positions for the "
                f"prompt and what follows it"
            )
        if not ids:
            raise ConfigError(f"the prompt has no tokens, and {self.name} has none to begin with")
        return ids


def load(source: str | Path) -> LanguageModel:
    """The language model of a run, or of a Hugging Face directory or hub id.

    Raises ConfigError for a model that is no causal language model.
    """
    if not is_run(source):
        return load_directory(pretrained.resolve(str(source)))
    run = loaded.load(source)
    if not isinstance(run.task, CausalLM):
        raise ConfigError(f"{source}: its task is {type(run.task).__name__}, not CausalLM")
    tokenizer = load_tokenizer(run.config.data.tokenizer)
    return assemble(str(source), run.task.backbone, run.params["backbone"], tokenizer, ())


def load_directory(directory: Path) -> LanguageModel:
    """The language model of a Hugging Face directory."""
    trunk = pretrained.trunk(directory)
    causal(str(directory), trunk)
    task = CausalLM(backbone=trunk)
    probe = {
        name: jnp.zeros((1, 2), jnp.int32) for name in ("tokens", "positions", "segments", "ids")
    } | {"weights": jnp.zeros((1, 2), jnp.float32)}
    abstract = jax.eval_shape(
        lambda key: task.init({"params": key, "noise": key}, probe, train=False)["params"],
        jax.random.key(0),
    )
    params, _ = pretrained.load(directory, abstract, fresh=lambda paths: {}, allow="$^")
    tokenizer = load_tokenizer(str(directory))
    eos = ends_of(directory)
    return assemble(str(directory), trunk, params["backbone"], tokenizer, eos)


def causal(name: str, trunk: Any) -> None:
    """Raises ConfigError for a trunk that is no Transformer, or whose tokens see those to come."""
    if not getattr(getattr(trunk, "spec", None), "causal", False) or not hasattr(trunk, "extend"):
        raise ConfigError(f"{name}: is an encoder, and generate needs a causal language model")


def assemble(
    name: str, trunk: Any, params: Any, tokenizer: Tokenizer, eos: tuple[int, ...]
) -> LanguageModel:
    """What the tokenizer says of beginnings and ends, put beside the weights.

    A tokenizer that ends every text ends it with an `eos`; kernels and tables are kept as they are
    computed with.
    """
    causal(name, trunk)
    first, last = Template.of(tokenizer, 1).parts
    vocabulary = Vocabulary.of(tokenizer)
    usual = (*last[-1:], *(() if vocabulary.eos is None else (vocabulary.eos,)))
    dtype = compute_dtype(trunk.spec.dtype)
    kept = {
        path: jnp.asarray(leaf, dtype if path[-1] in ("kernel", "table") else None)
        for path, leaf in flatten_dict(params).items()
    }
    return LanguageModel(
        name=name,
        trunk=trunk,
        params=unflatten_dict(kept),
        tokenizer=tokenizer,
        before=first or (() if vocabulary.bos is None else (vocabulary.bos,)),
        always_before=bool(first),
        eos=tuple(sorted(set(eos or usual))),
    )


def ends_of(directory: Path) -> tuple[int, ...]:
    """The ids that end a text by generation_config.json or config.json, which may name several."""
    for file in ("generation_config.json", "config.json"):
        path = directory / file
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ConfigError(f"{path}: eos_token_id is {found!r}, expected a token's number")
        if ids:
            return tuple(ids)
    return ()
