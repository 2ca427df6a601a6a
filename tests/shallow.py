"""Every embedded method's train step, a layer of each kind, compiled for a small TPU slice.

What the TPU compiler refuses of a kind of layer it refuses here, in a tenth of the time that the
configs as they are take.
"""

import dataclasses
from typing import Any

from jaxgen import config as configs
from jaxgen import plan
from jaxgen.config import Experiment
from jaxgen.models.unet import UNetConfig
from jaxgen.plan import Compiled
from jaxgen.runtime import topologies

TOPOLOGY = "v5e:2x2"
# Longest first.
CONFIGS = ("add_latent", "add", "latent_diffusion", "ladd", "vae", "threshold_diffusion",
           "diffusion", "gan", "dit", "classifier")  # fmt: skip


def compiled(name: str) -> Compiled:
    """The train step of a config made shallow, as `jaxgen.plan --quick` would have it."""
    config, place = shallow(configs.load(name)), topologies.parse(TOPOLOGY)
    return plan.train_step(
        config, place, plan.mesh_of(config, topologies.devices(place)), quick=True
    )


def shallow(config: Any) -> Experiment:
    """The config with a layer of each kind that it has, at its own widths and sides."""
    fields: dict[str, Any] = {}
    if hasattr(config, "model") and hasattr(config.model, "unet"):
        model = config.model
        fields["model"] = dataclasses.replace(
            model,
            text=dataclasses.replace(model.text, layers=1),
            unet=_unet(model.unet),
            dit=dataclasses.replace(model.dit, depth=1),
        )
    elif hasattr(config, "model"):
        gan = config.model
        two = {name: getattr(gan, name)[-2:] for name in ("generator", "discriminator")}
        fields["model"] = dataclasses.replace(gan, blocks=1, **two)
    if getattr(config, "codec", "") or hasattr(config, "discriminator"):
        codec = config.autoencoder
        fields["autoencoder"] = dataclasses.replace(codec, layers=1, block_out=codec.block_out[:2])
    if hasattr(config, "resnet"):
        widths = config.resnet.widths[:2]
        fields["resnet"] = dataclasses.replace(config.resnet, widths=widths, blocks=1)
    if hasattr(config, "judge") and hasattr(config.judge, "resize"):
        fields["judge"] = dataclasses.replace(config.judge, taps=(0,))
    if hasattr(config, "taps"):
        fields["taps"] = (0,)
    return dataclasses.replace(config, **fields)


def _unet(unet: UNetConfig) -> UNetConfig:
    """Its finest level and its coarsest, of which the second attends."""
    ends = {
        name: (getattr(unet, name)[0], getattr(unet, name)[-1])
        for name in ("block_out", "attention", "transformer_depth", "heads")
    }
    return dataclasses.replace(unet, layers=1, **ends)
