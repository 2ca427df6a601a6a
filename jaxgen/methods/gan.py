"""A text-conditioned GAN: R3GAN's loss (Huang et al. 2024, arXiv 2501.05441), or that of 2014.

Two players, each with a small text encoder of its own that learns from that player's loss. Their
updates take turns as in R3GAN's code, the discriminator first. That code also anneals Adam's b2,
.9 to .99, and the moving average's length; here both are constant.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from jaxgen import config as configs
from jaxgen import optimizer
from jaxgen.config import Experiment, Optimizer
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods.text_to_image import seen_words
from jaxgen.models.augment import POLICIES, diffaug
from jaxgen.models.gan import Discriminator, GanConfig, Generator
from jaxgen.pixels import mirrored, to_uint8, to_unit
from jaxgen.state import Batch, Metrics, State, stream
from jaxgen.text.encoder import TextConfig, TextEncoder

Images = Float[Array, "b h w 3"]
Captions = Int[Array, "b length"]
Logits = Float[Array, " b"]
Loss = Literal["r3gan", "nonsaturating"]
Weights = dict[str, Any]
ONE_STEP = Sampler(steps=1)
__all__ = ["seen_words"]  # a shared function of this method


@dataclasses.dataclass(frozen=True)
class Gan(Experiment):
    text: TextConfig = TextConfig(width=64, heads=2)
    """The text encoder that each player has one of."""
    model: GanConfig = GanConfig()
    loss: Loss = "r3gan"
    """r3gan: each fake is judged against the real image of its caption (relativistic pairing);
    nonsaturating: each image alone (Goodfellow et al. 2014, section 3)."""
    gamma: tuple[float, float] = (0.05, 0.005)
    """Weight of the gradient penalties R1 and R2 at the first and the last step, a half cosine
    between them. The paper has .05 to .005 for CIFAR, 1 to .1 at 64 px; 0 0 leaves them out."""
    mismatched: float = 1.0
    """Weight of the discriminator's loss on real images with another image's caption, which are to
    look less real than with their own (Reed et al. 2016, GAN-CLS). R3GAN has none: with 0 only
    the fakes teach the discriminator to read, and small ones hardly do."""
    augment: tuple[str, ...] = ("translation", "cutout")
    """Differentiable augmentations of everything judged (Zhao et al. 2020), in order. Colours are
    in captions, so color is left out."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-4, warmup=0, b1=0.0, clip=100.0)
    """The generator's. The paper's learning rate goes with batches of 512, and ends at 5e-5."""
    discriminator_optimizer: Optimizer = Optimizer(learning_rate=2e-4, warmup=0, b1=0.0, clip=100.0)

    @property
    def caption_length(self) -> int:
        return self.text.length

    def resolved(self, vocabulary: int, classes: int) -> "Gan":
        del classes
        return dataclasses.replace(self, text=dataclasses.replace(self.text, vocabulary=vocabulary))

    def check(self) -> None:
        super().check()
        self.discriminator_optimizer.check("discriminator-optimizer")
        self.model.check(self.data.size)
        if not all(0 <= number < float("inf") for number in self.gamma):
            raise UserError(f"--gamma is {self.gamma}; give two numbers of 0 or more")
        configs.check_not_negative({"mismatched": self.mismatched})
        if self.mismatched and self.train.batch < 2:
            raise UserError("--mismatched needs another caption: give --train.batch 2 or more")
        if unknown := set(self.augment) - set(POLICIES):
            raise UserError(f"--augment {min(unknown)!r} is none of {', '.join(POLICIES)}")


def frozen(config: Gan, filled: dict[str, Any]) -> dict[str, Any]:
    """Nothing: a GAN needs no other network."""
    del config, filled
    return {}


def frozen_shapes(config: Gan) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    return frozen(config, {})


def init(config: Gan, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; each player is its text encoder and its network."""
    del frozen
    generator_key, discriminator_key, *text_keys = jax.random.split(key, 4)
    caption = jnp.zeros((1, config.text.length), jnp.int32)
    image = jnp.zeros((1, config.data.size, config.data.size, 3))
    pooled = jnp.zeros((1, config.text.projection or config.text.width))
    params: dict[str, Any] = {
        "generator": _generator(config).init(
            generator_key, jnp.zeros((1, config.model.noise)), pooled
        ),
        "discriminator": Discriminator(config.model).init(discriminator_key, image, pooled),
    }
    for (name, network), text_key in zip(params.items(), text_keys, strict=True):
        text = TextEncoder(config.text).init(text_key, caption)
        params[name] = {"text": text["params"], name: network["params"]}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={"generator": jax.tree.map(jnp.copy, params["generator"])},
        opt_state={name: _optimizers(config)[name].init(params[name]) for name in params},
    )


def train_step(config: Gan, state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    """One update of the discriminator, then one of the generator against the updated one.

    The generator runs forward once for both. Metrics: the players' losses and their sum, the terms
    of the discriminator's, the two shares (see `shares`), gradient norms.
    """
    del frozen

    def random(name: str) -> PRNGKeyArray:
        return stream(config.seed, state.step, name)

    caption, real = batch["caption"], to_unit(batch["image"])
    if config.data.flip:
        real = mirrored(random("flip"), real)
    z = jax.random.normal(random("latent"), (len(real), config.model.noise))

    def drawn(weights: Weights) -> Images:
        return draw(config, weights, z, caption)

    fake, generator_vjp = jax.vjp(drawn, state.params["generator"])

    def judged(weights: Weights) -> tuple[Float[Array, ""], Metrics]:
        gamma = penalty_weight(config, state.step)
        key = random("augment for the discriminator")
        return loss_of_discriminator(config, weights, key, real, fake, caption, gamma)

    optimizers = _optimizers(config)
    (lost, told), gradient = jax.value_and_grad(judged, has_aux=True)(state.params["discriminator"])
    discriminator, discriminator_opt, discriminator_norm = optimizer.apply(
        optimizers["discriminator"],
        gradient,
        state.opt_state["discriminator"],
        state.params["discriminator"],
    )

    def fooled(fake: Images) -> Float[Array, ""]:
        key = random("augment for the generator")
        return loss_of_generator(config, discriminator, key, real, fake, caption)

    missed, at_pixels = jax.value_and_grad(fooled)(fake)
    generator, generator_opt, generator_norm = optimizer.apply(
        optimizers["generator"],
        generator_vjp(at_pixels)[0],
        state.opt_state["generator"],
        state.params["generator"],
    )

    return State(
        step=state.step + 1,
        params={"generator": generator, "discriminator": discriminator},
        ema=optimizer.averaged(config.train, state.ema, {"generator": generator}, state.step),
        opt_state={"generator": generator_opt, "discriminator": discriminator_opt},
    ), {
        "loss": missed + lost,
        "generator": missed,
        "discriminator": lost,
        **told,
        "generator_gradient": generator_norm,
        "discriminator_gradient": discriminator_norm,
    }


def draw(config: Gan, weights: Weights, z: Float[Array, "b d"], caption: Captions) -> Images:
    """The generator's images, in about [-1, 1]."""
    pooled = _pooled(config, weights, caption)
    return _generator(config).apply({"params": weights["generator"]}, z, pooled)  # pyright: ignore[reportReturnType]


def loss_of_discriminator(
    config: Gan,
    weights: Weights,
    key: PRNGKeyArray,
    real: Images,
    fake: Images,
    caption: Captions,
    gamma: Float[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Adversarial loss, that on mismatched captions, and γ/2·(R1 + R2); with its terms, the shares.

    R1 and R2 are the means over images of ‖∇_x D‖² on real and on fake ones, at the images before
    their augmentation, as R3GAN's code has it, the captions held fixed.
    """
    pooled = _pooled(config, weights, caption)
    own_and_other = rearrange([pooled, jnp.roll(pooled, 1, axis=0)], "two b e -> b two e")

    def judged(images: Images) -> Float[Array, "b two"]:
        held = repeat(own_and_other, "b two e -> (b pair) two e", pair=2)
        return _judged(config, weights, key, images, held)

    # A caption's two images are neighbours, so that sharding keeps them together.
    images = rearrange([real, fake], "pair b ... -> (b pair) ...")
    logits, judged_vjp = jax.vjp(judged, images)
    (slope,) = judged_vjp(jnp.zeros_like(logits).at[:, 0].set(1.0))
    r1, r2 = reduce(slope**2, "(b pair) h w c -> pair b", "sum", pair=2).mean(axis=1)
    (on_real, on_other), (on_fake, _) = rearrange(logits, "(b pair) two -> pair two b", pair=2)

    adversarial = discriminator_loss(config.loss, on_real, on_fake)
    differs = jnp.any(caption != jnp.roll(caption, 1, axis=0), axis=1)
    mismatched = jnp.mean(differs * mismatched_loss(config.loss, on_real, on_other))
    total = adversarial + config.mismatched * mismatched
    if any(config.gamma):
        total += gamma / 2 * (r1 + r2)
    return total, {
        "adversarial": adversarial,
        "mismatched": mismatched,
        "r1": r1,
        "r2": r2,
        "gamma": gamma,
        **shares(config.loss, on_real, on_fake),
    }


def loss_of_generator(
    config: Gan,
    weights: Weights,
    key: PRNGKeyArray,
    real: Images,
    fake: Images,
    caption: Captions,
) -> Float[Array, ""]:
    """What the generator loses by its images before the discriminator of these `weights`."""
    pooled = repeat(_pooled(config, weights, caption), "b e -> (b pair) e", pair=2)
    images = rearrange([real, fake], "pair b ... -> (b pair) ...")
    logits = _judged(config, weights, key, images, pooled)
    return generator_loss(config.loss, *rearrange(logits, "(b pair) -> pair b", pair=2))


def discriminator_loss(loss: Loss, real: Logits, fake: Logits) -> Float[Array, ""]:
    """r3gan: mean softplus(-(D(x) - D(G(z)))), x and G(z) of one caption.

    nonsaturating: mean softplus(-D(x)) + softplus(D(G(z))), the cross-entropy of real and fake.
    """
    if loss == "r3gan":
        return jnp.mean(jax.nn.softplus(fake - real))
    return jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(fake))


def generator_loss(loss: Loss, real: Logits, fake: Logits) -> Float[Array, ""]:
    """r3gan: mean softplus(-(D(G(z)) - D(x))). nonsaturating: mean softplus(-D(G(z)))."""
    if loss == "r3gan":
        return jnp.mean(jax.nn.softplus(real - fake))
    return jnp.mean(jax.nn.softplus(-fake))


def mismatched_loss(loss: Loss, own: Logits, other: Logits) -> Logits:
    """Of real images with their own and with another caption: the latter are a kind of fake."""
    return jax.nn.softplus(other - own if loss == "r3gan" else other)


def shares(loss: Loss, real: Logits, fake: Logits) -> Metrics:
    """rightly_judged and fakes_pass: how often the discriminator is right, and is fooled.

    r3gan's logits mean something only beside each other. So rightly_judged is the share of pairs of
    one caption with D(x) > D(G(z)), and fakes_pass the share of fakes above the median logit of the
    real images. nonsaturating: the share of all images, real and fake, with the right sign, and
    the share of fakes above 0.
    """
    if loss == "r3gan":
        return {
            "rightly_judged": jnp.mean(real > fake),
            "fakes_pass": jnp.mean(fake > jnp.median(real)),
        }
    return {
        "rightly_judged": (jnp.mean(real > 0) + jnp.mean(fake < 0)) / 2,
        "fakes_pass": jnp.mean(fake > 0),
    }


def penalty_weight(config: Gan, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """γ at a step: a half cosine from the first of `gamma` at step 0 to the second at the last."""
    first, last = config.gamma
    part = jnp.clip(step / max(config.train.steps - 1, 1), 0.0, 1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * part)) / 2


def weights(config: Gan, state: State, frozen: Any) -> Weights:
    """What sampling needs: the generator and its text encoder, averaged over training."""
    del config, frozen
    return state.ema["generator"]


def sample(
    config: Gan, weights: Weights, key: PRNGKeyArray, caption: Captions, sampler: Sampler
) -> UInt8[Array, "b h w 3"]:
    """Images from caption ids, in one call of the generator.

    Image i's latent depends on the key and i, not on the size of the batch or the devices.
    """
    check_sampler(config, sampler)
    z = jax.random.normal(key, (caption.shape[0], config.model.noise))
    return to_uint8(draw(config, weights, z, caption))


def check_sampler(config: Gan, sampler: Sampler) -> None:
    """Raises UserError for anything but the one sampler there is, naming what to leave out."""
    del config
    if asked := configs.differences(sampler, ONE_STEP):
        options = {"strength": "start"}  # which alone asks for it
        told = " and ".join(f"--{options.get(field, field)}" for field in asked)
        raise UserError(f"a GAN draws in one step, from noise alone; leave {told} out")


def samplers(config: Gan) -> dict[str, Sampler]:
    """The samplers worth a look, by title: one step."""
    del config
    return {"1 step": ONE_STEP}


def measured_steps(config: Gan) -> tuple[int, ...]:
    """Numbers of steps at which the samples are worth measuring."""
    del config
    return (1,)


def shown(config: Gan, state: State, frozen: Any) -> list[tuple[str, Weights, Sampler]]:
    """What the sample grids show: title, weights, sampler."""
    average = weights(config, state, frozen)
    return [(title, average, sampler) for title, sampler in samplers(config).items()]


def _judged(
    config: Gan,
    weights: Weights,
    key: PRNGKeyArray,
    images: Images,
    pooled: Float[Array, "b *captions e"],
) -> Float[Array, "b *captions"]:
    images = diffaug(key, images, config.augment)
    network = Discriminator(config.model)
    return network.apply({"params": weights["discriminator"]}, images, pooled)  # pyright: ignore[reportReturnType]


def _pooled(config: Gan, weights: Weights, caption: Captions) -> Float[Array, "b e"]:
    return TextEncoder(config.text).apply({"params": weights["text"]}, caption).pooled  # pyright: ignore[reportAttributeAccessIssue]


def _generator(config: Gan) -> Generator:
    return Generator(config.model, config.data.size)


def _optimizers(config: Gan) -> dict[str, Any]:
    return {
        "generator": optimizer.build(config.optimizer, config.train),
        "discriminator": optimizer.build(config.discriminator_optimizer, config.train),
    }
