"""The judge's eyes: each network's own tokens and vector, at any precision, with their gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from transformers import Dinov2Config, Dinov2Model

from jaxgen.errors import UserError
from jaxgen.models import eyes
from jaxgen.models.augment import resize_area
from jaxgen.models.efficientnet import EfficientNetLite0
from jaxgen.models.eyes import Eyes
from jaxgen.models.judge import JudgeConfig
from jaxgen.models.resnet import ResNet, ResNetConfig
from jaxgen.models.vit import ViT, VitClassifier, VitConfig
from jaxgen.weights.efficientnet import load_efficientnet_lite0
from jaxgen.weights.vit import dinov2_params

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 24, 24, 3)).astype(np.float32)
TINY = VitConfig(3, patch=4, width=16, depth=2, heads=2, size=16, layer_scale=1e-5)
SEEN = {
    "vit": (ViT(TINY), [(36, 16)] * 3, 16),
    "vit classifier": (VitClassifier(TINY), [(36, 16)] * 3, 16),
    "resnet": (ResNet(ResNetConfig(3, (8, 12), 2, 2, 4)), [(144, 8), (36, 12)], 12),
}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def look(seeing: Eyes, image: Any, taps: tuple[int, ...], side: int, dtype: str) -> Any:
    return eyes.look(seeing, image, taps, side, dtype)


def opened(network: Any) -> Eyes:
    """With nothing at zero or one, as layer scales and biases begin."""
    shapes = jax.eval_shape(lambda: eyes.fresh(network, 16, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def dinov2() -> Any:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    model = Dinov2Model(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def test_efficientnet_is_seen_by_as_it_always_was() -> None:
    variables = load_efficientnet_lite0()

    @jax.jit
    def expected(variables: Any, image: Any) -> Any:
        maps: Any = EfficientNetLite0().apply(
            variables, resize_area(image, 16), (2, 4), method="features"
        )
        tokens = [rearrange(m, "b h w c -> b (h w) c") for m in maps]
        return tokens, jax.nn.standardize(tokens[-1].mean(1))

    seeing = Eyes(EfficientNetLite0(), variables["params"])
    ours = look(seeing, IMAGES, (2, 4), 16, "float32")
    jax.tree.map(np.testing.assert_array_equal, ours, expected(variables, IMAGES))
    assert eyes.usual_taps(seeing.network) == (2, 4, 10)
    rough, _ = jax.eval_shape(
        lambda seeing, image: eyes.look(seeing, image, (0,), 16, "bfloat16"), seeing, IMAGES
    )
    assert (rough[0].shape, rough[0].dtype) == ((3, 64, 16), jnp.float32)


def assert_near(rough: Any, exact: Any) -> None:
    """Of half precision: 3 digits, yet 32 bits; and that it did compute in it."""
    for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(b) < 0.05


@pytest.mark.parametrize("side", [16, 24])
def test_dinov2_sees_what_transformers_does(dinov2: Any, side: int) -> None:
    state = {name: tensor.numpy() for name, tensor in dinov2.state_dict().items()}
    image = IMAGES[:, :side, :side]
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy((image / 2 + 0.5 - mean) / deviation).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = dinov2(pixels, output_hidden_states=True)
    seeing = Eyes(ViT(TINY), dinov2_params(state, TINY))
    tokens, whole = look(seeing, image, (), side, "float32")
    assert len(tokens) == len(theirs.hidden_states) == 3
    for ours, hidden in zip(tokens, theirs.hidden_states, strict=True):
        np.testing.assert_allclose(ours, hidden[:, 1:] + hidden[:, :1], atol=1e-4, rtol=1e-4)
    pooled = theirs.pooler_output.numpy()
    centred = pooled - pooled.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(whole, expected, atol=1e-4)


@pytest.mark.parametrize("name", SEEN)
def test_tokens_a_tap_and_one_vector(name: str) -> None:
    network, shapes, width = SEEN[name]
    seeing = opened(network)
    tokens, whole = exact = look(seeing, IMAGES[:, :16, :16], (), 24, "float32")
    assert [t.shape for t in tokens] == [(3, *shape) for shape in shapes]
    assert whole.shape == (3, width)
    np.testing.assert_allclose(whole.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std(-1), 1, atol=1e-2)
    assert_near(look(seeing, IMAGES[:, :16, :16], (), 24, "bfloat16"), exact)


def test_usual_taps_are_evenly_spread() -> None:
    assert eyes.usual_taps(eyes.NETWORKS["dinov2-vits14"]) == (-1, 2, 5, 8, 11)
    assert eyes.usual_taps(ResNet(ResNetConfig(blocks=2))) == (1, 3, 5)
    assert eyes.usual_taps(VitClassifier(VitConfig(depth=1))) == (-1, 0)
    for network in (*eyes.NETWORKS.values(), *(network for network, _, _ in SEEN.values())):
        eyes.check("", network, eyes.usual_taps(network), 224)


def test_the_students_gradient_passes_through_dinov2() -> None:
    """Against finite differences, in float64 but for the softmax."""
    small = VitConfig(patch=4, width=8, depth=2, heads=2)
    draws = np.random.default_rng(2)
    with jax.enable_x64(True):
        seeing = jax.tree.map(lambda a: a.astype(jnp.float64), opened(ViT(small)))
        image = jnp.asarray(IMAGES[:2, :8, :8], jnp.float64)
        weights = [jnp.asarray(draws.normal(size=(2, 16, 8))) for _ in range(2)]

        @jax.jit
        @jax.value_and_grad
        def weighed(image: Any) -> Any:
            tokens, whole = eyes.look(seeing, image, (-1, 1), 16, "float32")
            return sum(jnp.vdot(a, b) for a, b in zip(tokens, weights, strict=True)) + whole[0, 0]

        way = jnp.asarray(draws.normal(size=image.shape))
        slope = (weighed(image + 1e-3 * way)[0] - weighed(image - 1e-3 * way)[0]) / 2e-3
        _, gradient = weighed(image)
        assert gradient.dtype == jnp.float64
        assert abs(slope) > 0.1
        np.testing.assert_allclose(jnp.vdot(gradient, way), slope, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"features": "dinov2-vits14", "resize": 64}, "--judge.resize is 64, no multiple of 14"),
        (
            {"features": "dinov2-vits14", "resize": 224, "taps": (12,)},
            "--judge.taps has 12; dinov2-vits14 has blocks 0 to 11 (-1: before the first)",
        ),
        ({"taps": (2, -1)}, "--judge.taps has -1; efficientnet-lite0 has blocks 0 to 15"),
        ({"weights": "x"}, "--judge.weights goes with --judge.features=dinov2-vits14"),
        ({"features": "vgg"}, "known: efficientnet-lite0, dinov2-vits14, shipped:classifier, or"),
        ({"resize": 15}, "give 16 pixels or more"),
    ],
)
def test_what_does_not_fit_the_eyes_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        JudgeConfig(**config).check()
    assert words in str(error.value)


def test_without_a_name_the_weights_say_which_eyes() -> None:
    assert JudgeConfig(features="").eyes == "efficientnet-lite0"
    assert JudgeConfig(features="", weights="x").eyes == "dinov2-vits14"
    JudgeConfig(features="", weights="x", resize=224).check()
