"""What every method that trains a text-conditioned denoiser shares: its config's base, sampling."""

import dataclasses

import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from jaxgen.config import Experiment
from jaxgen.diffusion import denoiser
from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.pixels import to_uint8


@dataclasses.dataclass(frozen=True)
class TextToImage(Experiment):
    model: Denoiser = Denoiser()
    guidance: float = 3.0
    """Guidance of iterative sampling."""
    sampler_steps: int = 50
    """Steps of iterative sampling."""

    @property
    def caption_length(self) -> int:
        return self.model.text.length

    @property
    def iterative(self) -> Sampler:
        """The many-step, guided sampler."""
        return Sampler(steps=self.sampler_steps, guidance=self.guidance)

    def resolved(self, vocabulary: int, classes: int) -> "TextToImage":
        text = dataclasses.replace(self.model.text, vocabulary=vocabulary)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, text=text))

    def check(self) -> None:
        super().check()
        self.model.check(self.data.size)
        samplers.check(self.iterative, self.model.schedule)


def sample(
    config: TextToImage,
    weights: denoiser.Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
    sampler: Sampler,
) -> Array:
    """uint8 images [b, h, w, 3] from caption ids: one program from ids to pixels."""
    x0 = denoiser.sample(config.model, config.data.size, weights, key, caption, sampler)
    return to_uint8(x0)


def check_sampler(config: TextToImage, sampler: Sampler) -> None:
    """Raises UserError for a sampler that the config's schedule cannot serve."""
    samplers.check(sampler, config.model.schedule)


def seen_words(weights: denoiser.Weights) -> frozenset[int]:
    """Ids of the words met in training: the others' rows of the token table are still zero."""
    table = np.asarray(weights["text"]["embeddings_token_embedding"]["embedding"])
    return frozenset(np.flatnonzero(table.any(axis=1)).tolist())
