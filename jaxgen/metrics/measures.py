"""All measures of one set of samples against real images, each with its 95 % interval."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, UInt8

from jaxgen.metrics import bootstrap, expert, frechet, kernel, memorisation, modes, retrieval
from jaxgen.metrics.bootstrap import NORMAL_95, Estimate
from jaxgen.metrics.manifold import manifold

LEAST = expert.LEAST
RETRIEVED = (1, 5, 10)
NEIGHBOURS = 5  # k of precision, recall, density and coverage
NAMES = (
    *("frechet", "kid", "precision", "recall", "density", "coverage", "modes", "expert"),
    *(f"{what}@{at}" for at in RETRIEVED for what in ("retrieval", "chance")),
    *("nearest_ratio", "memorised"),
)
"""What `measures` finds. Results without one of these are of older measures, which may go by the
name of one of today's: retrieval, before there was chance, knew one image of a caption alone."""
_RESAMPLES = 100

Rows = Int[np.ndarray, "m"]


class Pictures(NamedTuple):
    """Images, and what a feature network sees in them, row for row."""

    images: UInt8[np.ndarray, "n h w 3"]
    features: Float[np.ndarray, "n d"]


class Real(NamedTuple):
    """The real images: those of training first, then those held out."""

    all: Pictures
    training: int
    """How many of them are of training."""
    captions: Int[np.ndarray, "n"]
    """A number for what is said of each; images of the same captions have the same."""

    @property
    def train(self) -> Float[np.ndarray, "n d"]:
        """Features of the training images."""
        return self.all.features[: self.training]

    @property
    def held_out(self) -> Float[np.ndarray, "n d"]:
        """Features of the held-out images."""
        return self.all.features[self.training :]


def measures(samples: Pictures, own: Rows, real: Real, key: PRNGKeyArray) -> dict[str, Estimate]:
    """Every measure by name. Samples of one caption count as one in the intervals, but for KID's.

    `own` has for each sample the row of the real image whose caption it was made from. `key` seeds
    resampling and the expert judge, which tells those very images from the samples. `chance@k` is
    what `retrieval@k` would be of samples that show nothing. Raises
    `UserError` for fewer images than a measure needs.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    asked = np.unique(own)
    found = likeness(samples.features, real.train, rng, own)
    found["expert"] = expert.expert_judge(
        real.all.images[asked], samples.images, key, groups=(asked, own)
    )
    ranks = retrieval.ranks(samples.features, real.all.features, own, real.captions)
    for at in RETRIEVED:
        found[f"retrieval@{at}"] = bootstrap.of_share(retrieval.hits(ranks, at), own)
        chance = retrieval.by_chance(real.captions, own, at)
        found[f"chance@{at}"] = Estimate(chance, chance, chance)
    of_samples = memorisation.nearest(samples.features, real.train)
    of_held_out = memorisation.nearest(real.held_out, real.train)
    found["nearest_ratio"] = bootstrap.of_statistic(
        memorisation.median_ratio, of_samples, of_held_out, rng=rng, groups=[own, None]
    )
    found["memorised"] = bootstrap.of_share(memorisation.copies(samples.features, real.train), own)
    return found


def likeness(
    fake: Float[np.ndarray, "m d"],
    real: Float[np.ndarray, "n d"],
    rng: np.random.Generator,
    own: Rows | None = None,
) -> dict[str, Estimate]:
    """The measures that compare two sets of features, whatever each image shows.

    The intervals of Fréchet distance, precision and density are those of the samples, for these
    very real images; KID's is that of both sets; those of recall and coverage, which ask every
    real image about the same samples, count no more images than there are samples.
    Of held-out real images against those of training they are the floor: what perfect samples, as
    many as that, would have.
    """
    fixed = frechet.gaussian(real)
    distance = bootstrap.of_statistic(
        lambda features: frechet.distance(fixed, frechet.gaussian(features)),
        fake,
        rng=rng,
        groups=[own],
        resamples=_RESAMPLES,
    )
    kid, error = kernel.kid(real, fake)
    near = manifold(real, fake, NEIGHBOURS)
    covered = bootstrap.of_statistic(
        lambda features: modes.modes_covered(features, real).share,
        fake,
        rng=rng,
        groups=[own],
        resamples=_RESAMPLES,
    )
    samples = len(fake) if own is None else len(np.unique(own))
    return {
        "frechet": distance._replace(low=max(distance.low, 0.0)),
        "kid": Estimate(kid, kid - NORMAL_95 * error, kid + NORMAL_95 * error),
        "precision": bootstrap.of_share(near.precision, own),
        "recall": bootstrap.of_share(near.recall, at_most=samples),
        "density": bootstrap.of_mean(near.density, rng, own),
        "coverage": bootstrap.of_share(near.coverage, at_most=samples),
        "modes": covered._replace(low=max(covered.low, 0.0), high=min(covered.high, 1.0)),
    }
