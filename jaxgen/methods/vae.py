"""The KL autoencoder of latent diffusion: images to codes and back (Rombach et al. 2022, LDM).

Two players: the autoencoder, and from some step on a discriminator of patches. Every term is a mean
over what it is taken of, so that no weight depends on the size of the image or the batch: L1 over
pixel values, the perceptual distance over positions and taps. The KL divergence is summed over the
latent and divided by the number of pixel values. LDM sums all its terms over an image, so the ratio
of the terms is LDM's and its weights keep their meaning, the KL weight of 1e-6 above all.

Elsewhere codes are the encoder's means, of which `weights` makes every channel one of mean 0 and
deviation 1 or nearly so (`codecs.standardised`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from jaxgen import config as configs
from jaxgen import optimizer
from jaxgen.config import Experiment, Optimizer
from jaxgen.diffusion import codec as codecs
from jaxgen.errors import UserError
from jaxgen.models import eyes
from jaxgen.models import judge as judges
from jaxgen.models.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from jaxgen.models.efficientnet import BLOCKS, EfficientNetLite0
from jaxgen.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from jaxgen.pixels import mirrored, to_uint8, to_unit
from jaxgen.state import Batch, Metrics, State, moving_average, stream

Images = Float[Array, "b h w 3"]
Latents = Float[Array, "b h w l"]
Weights = dict[str, Any]
"""The autoencoder's parameters, and `scale`."""
Scalar = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Vae(Experiment):
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    l1: float = 1.0
    """Weight of the mean absolute error of pixels in [-1, 1]."""
    perceptual: float = 1.0
    """Weight of the distance between features of a frozen network."""
    features: str = "efficientnet-lite0"
    """The frozen feature network."""
    taps: tuple[int, ...] = (0, 2, 4, 10)
    """Blocks of the feature network whose outputs are compared."""
    kl: float = 1e-6
    """Weight of the KL divergence from a unit Gaussian; 0: a plain autoencoder, without noise."""
    adversarial: float = 0.5
    """Weight of the discriminator's verdict, on top of the adaptive weight; 0: there is none."""
    adversarial_from: float = 0.5
    """Share of `train.steps` after which the discriminator joins in: a run that is taken up with
    more of them may leave it out again for a while."""
    head_start: float = 0.1
    """Share of `train.steps` for which it learns before that, unheard. The adaptive weight has its
    verdict pull `adversarial` times as hard as the reconstruction's error at the decoder's last
    layer, whatever it knows: of one that knows nothing that is noise, which undoes what the
    autoencoder has learnt."""
    discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig()
    discriminator_optimizer: Optimizer = Optimizer(learning_rate=5e-4, b1=0.5, clip=10.0)

    def roles(self) -> dict[str, str]:
        return {"features": self.features} if self.perceptual else {}

    def check(self) -> None:
        super().check()
        self.discriminator_optimizer.check("discriminator-optimizer")
        terms = ("l1", "perceptual", "kl", "adversarial")
        configs.check_not_negative({term: getattr(self, term) for term in terms})
        if self.l1 == self.perceptual == 0:
            raise UserError("--l1 and --perceptual are both 0; nothing would be learnt")
        if not 0.0 <= self.adversarial_from < 1.0:
            raise UserError(
                f"--adversarial-from is {self.adversarial_from}; give a share of the steps, from 0 "
                "to below 1 (--adversarial=0 leaves the discriminator out)"
            )
        if not 0.0 <= self.head_start < 1.0:
            raise UserError(
                f"--head-start is {self.head_start}; give a share of the steps, from 0 to below 1"
            )
        if self.autoencoder.channels != 3:
            raise UserError(
                f"--autoencoder.channels is {self.autoencoder.channels}; pictures have 3"
            )
        if self.data.size % self.autoencoder.factor:
            raise UserError(
                f"--data.size {self.data.size} is not a multiple of {self.autoencoder.factor}, "
                f"which --autoencoder.patch {self.autoencoder.patch} and "
                f"{len(self.autoencoder.block_out)} levels need"
            )
        if self.perceptual and self.features != eyes.EFFICIENTNET:
            raise UserError(f"--features {self.features!r} is unknown; known: {eyes.EFFICIENTNET}")
        if self.perceptual and not (self.taps and set(self.taps) <= set(range(len(BLOCKS)))):
            raise UserError(f"--taps is {self.taps}; give blocks of {self.features}: 0 to 15")
        if self.adversarial and self.data.size < self.discriminator.smallest:
            raise UserError(
                f"--data.size {self.data.size} is below {self.discriminator.smallest}, which "
                f"--discriminator.layers {self.discriminator.layers} need"
            )


def frozen(config: Vae, filled: dict[str, Any]) -> dict[str, Any]:
    """The feature network of the perceptual distance, where that has a weight."""
    return {"eyes": filled["features"]} if config.perceptual else {}


def frozen_shapes(config: Vae) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    image = jnp.zeros((1, config.data.size, config.data.size, 3))
    eyes = EfficientNetLite0().init(jax.random.key(0), image)
    return frozen(config, {"features": eyes})


def init(config: Vae, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; the channels' moments, beside the averaged weights, are a unit Gaussian's.

    There is no player `discriminator` where its weight is 0.
    """
    del frozen
    image = jnp.zeros((1, config.data.size, config.data.size, 3))
    channels = config.autoencoder.latent_channels
    keys = dict(zip(("autoencoder", "discriminator"), jax.random.split(key), strict=True))
    params = {"autoencoder": Autoencoder(config.autoencoder).init(keys["autoencoder"], image)}
    if config.adversarial:
        network = PatchDiscriminator(config.discriminator)
        params["discriminator"] = network.init(keys["discriminator"], image)
    params = {name: variables["params"] for name, variables in params.items()}
    optimizers = _optimizers(config)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={
            "autoencoder": jax.tree.map(jnp.copy, params["autoencoder"]),
            "latents": {"mean": jnp.zeros(channels), "square": jnp.ones(channels)},
        },
        opt_state={name: optimizers[name].init(params[name]) for name in params},
    )


def train_step(config: Vae, state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    """One update of both players, each against the other as it was before the step.

    Every network runs forward once for an image; the gradients at the pixels are weighed there
    (`adaptive_weight`) before they go on to the parameters. Metrics: the loss and its terms, PSNR
    in dB, the standard deviation of the latents, the adaptive weight, the shares of patches taken
    for real, gradient norms. What is the discriminator's is 0 until it learns.
    """
    real = to_unit(batch["image"])
    if config.data.flip:
        real = mirrored(stream(config.seed, state.step, "flip"), real)
    key = stream(config.seed, state.step, "posterior")

    def run(params: Any) -> tuple[Images, Posterior]:
        seen = posterior(config, params, real)
        latent = seen.sample(key) if config.kl else seen.mean
        return _network(config, params, "decode", latent), seen

    (fake, seen), backward = jax.vjp(run, state.params["autoencoder"])
    (error, terms), at_pixels = jax.value_and_grad(
        lambda image: reconstruction_loss(config, frozen, image, real), has_aux=True
    )(fake)
    divergence, at_posterior = jax.value_and_grad(lambda p: kl_loss(p, real.size // len(real)))(
        seen
    )
    at_posterior = jax.tree.map(lambda g: config.kl * g, at_posterior)
    optimizers, new, opt_state, game = _optimizers(config), {}, {}, {}
    loss = error + config.kl * divergence

    if config.adversarial:
        learning, joined = state.step >= _unplayed(config), state.step >= _alone(config)
        verdict, of_verdict, of_discriminator, judged = play(
            config, state.params["discriminator"], real, fake
        )

        def on_last_layer(cotangent: Images) -> Float[Array, "3 3 c d"]:
            # All else of this backward pass is dead code to the compiler.
            nothing = jax.tree.map(jnp.zeros_like, at_posterior)
            return backward((cotangent, nothing))[0]["decoder"]["conv_out"]["kernel"]

        adaptive = adaptive_weight(on_last_layer(at_pixels), on_last_layer(of_verdict))
        weight = jnp.where(joined, config.adversarial * adaptive, 0.0)
        at_pixels += weight * of_verdict
        loss += weight * verdict
        # It plays from the first step, unheard: in a lax.cond, which would spare that, XLA's
        # convolutions on a CPU took 15 times as long once it was let in.
        before = state.params["discriminator"], state.opt_state["discriminator"]
        *after, norm = optimizer.apply(
            optimizers["discriminator"], of_discriminator, before[1], before[0]
        )
        new["discriminator"], opt_state["discriminator"] = jax.tree.map(
            lambda a, b: jnp.where(learning, a, b), tuple(after), before
        )
        told = {"adversarial": verdict, **judged, "adaptive_weight": adaptive}
        told["discriminator_gradient"] = norm
        game = {name: jnp.where(learning, value, 0.0) for name, value in told.items()}

    (gradient,) = backward((at_pixels, at_posterior))
    new["autoencoder"], opt_state["autoencoder"], norm = optimizer.apply(
        optimizers["autoencoder"],
        gradient,
        state.opt_state["autoencoder"],
        state.params["autoencoder"],
    )
    moments = {"mean": seen.mean, "square": seen.mean**2}
    moments = {name: jnp.mean(value, (0, 1, 2)) for name, value in moments.items()}
    return State(
        step=state.step + 1,
        params=new,
        ema={
            "autoencoder": optimizer.averaged(
                config.train, state.ema["autoencoder"], new["autoencoder"], state.step
            ),
            # Over the last hundred batches, however slowly the weights are averaged.
            "latents": moving_average(state.ema["latents"], moments, 0.99, state.step),
        },
        opt_state=opt_state,
    ), {
        "loss": loss,
        **terms,
        "kl": divergence,
        "psnr": jnp.mean(psnr(jnp.clip(fake, -1.0, 1.0), real)),
        "latent_std": jnp.std(seen.mean),
        **game,
        "autoencoder_gradient": norm,
    }


def reconstruction_loss(
    config: Vae, frozen: Any, image: Images, real: Images
) -> tuple[Scalar, Metrics]:
    """L1 and perceptual distance with their weights, and each by itself."""
    terms = {"l1": jnp.mean(jnp.abs(image - real))}
    loss = config.l1 * terms["l1"]
    if config.perceptual:

        def look(image: Images) -> list[Float[Array, "b h w c"]]:
            return EfficientNetLite0().apply(  # pyright: ignore[reportReturnType]
                frozen["eyes"], image, config.taps, method="features"
            )

        terms["perceptual"] = jnp.mean(eyes.distance(look(image), look(real)))
        loss += config.perceptual * terms["perceptual"]
    return loss, terms


def kl_loss(posterior: Posterior, pixel_values: int) -> Scalar:
    """KL divergence from the unit Gaussian, in nats for each value of a pixel of an image."""
    return jnp.mean(posterior.kl()) / pixel_values


def play(
    config: Vae, params: Any, real: Images, fake: Images
) -> tuple[Scalar, Images, Any, Metrics]:
    """The discriminator's part of a step, from one forward pass over each kind of image.

    Returns:
      The autoencoder's loss -mean D(fake), its gradient at the pixels, the gradient of the
      discriminator's hinge loss ½·(mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))) at its
      parameters, and metrics.
    """

    def judged(params: Any, image: Images) -> Float[Array, "b i j"]:
        return PatchDiscriminator(config.discriminator).apply({"params": params}, image)  # pyright: ignore[reportReturnType]

    on_real, real_backward = jax.vjp(lambda p: judged(p, real), params)
    on_fake, fake_backward = jax.vjp(judged, params, fake)

    def hinge(on_real: Array, on_fake: Array) -> Scalar:
        return 0.5 * (judges.hinge_real([on_real]) + judges.hinge_fake([on_fake]))

    loss, (at_real, at_fake) = jax.value_and_grad(hinge, (0, 1))(on_real, on_fake)
    verdict, at_verdict = jax.value_and_grad(lambda logits: judges.generator_loss([logits]))(
        on_fake
    )
    of_discriminator = jax.tree.map(jnp.add, real_backward(at_real)[0], fake_backward(at_fake)[0])
    return (
        verdict,
        fake_backward(at_verdict)[1],
        of_discriminator,
        {
            "discriminator": loss,
            "real_believed": jnp.mean(on_real > 0),
            "fake_believed": jnp.mean(on_fake > 0),
        },
    )


def adaptive_weight(
    of_reconstruction: Float[Array, "..."], of_verdict: Float[Array, "..."]
) -> Scalar:
    """‖∇_L rec‖ / (‖∇_L adv‖ + 1e-4), clipped to [0, 1e4]; L is the decoder's last kernel.

    Esser et al. 2021 (VQGAN), eq. 7, with LDM's constants: at the last layer the verdict pulls,
    once weighed so, as hard as the reconstruction error.
    """
    ratio = jnp.linalg.norm(of_reconstruction) / (jnp.linalg.norm(of_verdict) + 1e-4)
    return jnp.clip(ratio, 0.0, 1e4)


def psnr(image: Images, real: Images) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio of pixels in [-1, 1], in dB; 100 where nothing differs."""
    error = jnp.mean((image - real) ** 2, axis=(1, 2, 3))
    return -10.0 * jnp.log10(jnp.maximum(error / 4.0, 1e-10))


def weights(config: Vae, state: State, frozen: Any) -> Weights:
    """The autoencoder averaged over training, its codes standardised, and their `scale`.

    By the channels' moments over about the last hundred batches of training pictures, each batch's
    as the encoder gave them that was then in training: not measured again with the averaged one,
    which is what is sampled with.
    """
    del frozen
    moments = state.ema["latents"]
    variance = moments["square"] - moments["mean"] ** 2
    # No less than a hundredth of the channels' own: one that says nothing is not to become noise.
    variance = jnp.maximum(variance, jnp.maximum(1e-4 * jnp.mean(variance), 1e-12))
    deviation = jnp.sqrt(variance)
    averaged = state.ema["autoencoder"]
    return codecs.standardised(config.autoencoder, averaged, moments["mean"], deviation)


def posterior(config: Vae, params: Any, image: Images) -> Posterior:
    """The encoder's Gaussian for images in [-1, 1]; `params` may be `Weights`."""
    return _network(config, params, "encode", image)


def encode(config: Vae, weights: Weights, image: Images) -> Latents:
    """Codes of images in [-1, 1], [b, h / factor, w / factor, latent channels], deviation about 1.

    The means of the posterior: the same each time.
    """
    return codecs.encode(config.autoencoder, weights, image)


def decode(config: Vae, weights: Weights, latents: Latents) -> Images:
    """Images, about in [-1, 1], from codes as `encode` makes them."""
    return codecs.decode(config.autoencoder, weights, latents)


def reconstruct(
    config: Vae, weights: Weights, image: UInt8[Array, "b h w 3"]
) -> UInt8[Array, "b h w 3"]:
    """Images through their codes and back."""
    return to_uint8(decode(config, weights, encode(config, weights, to_unit(image))))


def between(
    config: Vae,
    weights: Weights,
    a: UInt8[Array, "b h w 3"],
    b: UInt8[Array, "b h w 3"],
    count: int,
) -> UInt8[Array, "b count h w 3"]:
    """`count` images on the straight line from the codes of `a` to those of `b`, ends included."""
    share = jnp.linspace(0.0, 1.0, count)[:, None, None, None]
    start, end = (encode(config, weights, to_unit(image))[:, None] for image in (a, b))
    line = rearrange((1.0 - share) * start + share * end, "b n h w c -> (b n) h w c")
    return rearrange(to_uint8(decode(config, weights, line)), "(b n) h w c -> b n h w c", n=count)


def _network(config: Vae, params: Any, method: str, x: Array) -> Any:
    return Autoencoder(config.autoencoder).apply({"params": params}, x, method=method)


def _alone(config: Vae) -> int:
    """Steps before the discriminator joins in."""
    return round(config.adversarial_from * config.train.steps)


def _unplayed(config: Vae) -> int:
    """Steps before the discriminator learns."""
    return max(0, _alone(config) - round(config.head_start * config.train.steps))


def _optimizers(config: Vae) -> dict[str, Any]:
    return {
        "autoencoder": optimizer.build(config.optimizer, config.train),
        "discriminator": optimizer.build(
            config.discriminator_optimizer, config.train, begins=_unplayed(config)
        ),
    }
