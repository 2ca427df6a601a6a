"""Low-rank adaptation (LoRA): few trained numbers beside frozen weights.

Hu et al. 2021 (arXiv 2106.09685). A matrix W [in, out] acts as W + (alpha / rank)·A·B (section
4.1), with A [in, rank] Gaussian and B [rank, out] zero at first, so that tuning starts from exactly
what W did. A tree of adapters has the paths of the weights that it changes: {"a": A, "b": B} where
these have a matrix, and {"delta": change of the whole table} where they have the table of words.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.errors import UserError

Tree = Mapping[str, Any]
Path = tuple[str, ...]
WORDS: Path = ("text", "embeddings_token_embedding", "embedding")
LISTED = 10  # names that a refusal lists


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which weights are adapted, and how."""

    rank: int = 0
    """Rank of the change of a matrix; 0: no LoRA, all weights are trained."""
    targets: tuple[str, ...] = ("attn1", "attn2")
    """Globs for the matrices to adapt, of one name or several in a row within their paths, which
    are such as denoiser/mid_block/attentions_0/transformer_blocks_0/attn1/to_q/kernel: attn1, to_*,
    denoiser/mid_block, attn2/to_v; self_attn is the text encoder's attention."""
    alpha: float = 8.0
    """The change is scaled by alpha / rank."""
    train_words: bool = True
    """Train the table of words too, and whole: the row of a word that the first training never met
    is zero, and no change of attention could tell two such words from each other."""
    merge: bool = True
    """Keep W + (alpha / rank)·A·B as the run's weights; else W and the adapters side by side, which
    sampling merges each time."""

    def check(self) -> None:
        """Raises UserError where a number is impossible for any weights."""
        if self.rank < 0:
            raise UserError(f"--lora.rank is {self.rank}; give 1 or more, or 0 for no LoRA")
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"--lora.alpha is {self.alpha}; give a number above 0")
        if self.rank and not self.targets:
            raise UserError("--lora.targets names nothing to adapt; give attn1 attn2, say")


def matrices(config: Lora, weights: Tree) -> dict[Path, tuple[int, int]]:
    """Paths and shapes (in, out) of the matrices to adapt: of linear layers and 1x1 convolutions.

    `weights` may be shapes. Raises UserError for a target that matches none, listing some that
    would, and for a rank above the smaller side of one.
    """
    all_of_them = {
        path: shape for path, leaf in _flat(weights).items() if (shape := _sides(path, leaf))
    }
    for target in config.targets:
        if not any(_matches(target, path) for path in all_of_them):
            names = Counter(name for path in all_of_them for name in path[-3:-1])
            listed = ", ".join(name for name, _ in names.most_common(LISTED))
            raise UserError(
                f"--lora.targets {target!r} matches no matrix of the network; its paths have names "
                f"such as {listed}"
            )
    chosen = {
        path: shape
        for path, shape in all_of_them.items()
        if any(_matches(target, path) for target in config.targets)
    }
    smallest = min(chosen, key=lambda path: min(chosen[path]))
    if config.rank > min(chosen[smallest]):
        n_in, n_out = chosen[smallest]
        raise UserError(
            f"--lora.rank is {config.rank}, but {'/'.join(smallest)} is {n_in} x {n_out}: give "
            f"{min(n_in, n_out)} or less, or other --lora.targets"
        )
    return chosen


def init(config: Lora, base: Tree, key: PRNGKeyArray) -> dict[str, Any]:
    """Fresh adapters for the weights `base`; they change nothing yet.

    A has standard deviation 1 / rank (the paper says Gaussian and no more), as in the PEFT library.
    """
    chosen = matrices(config, base)
    tree: dict[Path, Any] = {}
    for path, own in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        n_in, n_out = chosen[path]
        a = jax.random.normal(own, (n_in, config.rank)) / config.rank
        tree[path] = {"a": a, "b": jnp.zeros((config.rank, n_out))}
    if config.train_words:
        tree[WORDS] = {"delta": jnp.zeros(_flat(base)[WORDS].shape)}
    return unflatten_dict(tree)


def merged(config: Lora, base: Tree, adapters: Tree) -> dict[str, Any]:
    """The weights `base` with the change that the adapters make; differentiable in both."""
    return {
        name: below if name not in adapters else _merged(config, below, adapters[name])
        for name, below in base.items()
    }


def _merged(config: Lora, base: Any, adapters: Tree) -> Any:
    if isinstance(base, Mapping):
        return merged(config, base, adapters)
    return base + _change(config, adapters).reshape(base.shape)


def _change(config: Lora, adapters: Tree) -> Float[Array, "n m"]:
    if "delta" in adapters:
        return adapters["delta"]
    return config.alpha / config.rank * (adapters["a"] @ adapters["b"])


def _flat(tree: Tree) -> dict[Path, Any]:
    return flatten_dict(tree)  # pyright: ignore[reportReturnType]


def _sides(path: Path, leaf: Any) -> tuple[int, int] | None:
    """(in, out) of a matrix, None for anything else."""
    if path[-1] == "kernel" and (leaf.ndim == 2 or leaf.shape[:-2] == (1, 1)):
        return leaf.shape[-2:]
    return None


def _matches(target: str, path: Path) -> bool:
    return fnmatchcase(f"/{'/'.join(path)}/", f"*/{target}/*")
