"""Every method through the doors: trained, taken up again, sampled; in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import published
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from jaxgen.diffusion.sampler import Sampler

HEAD = """
import dataclasses
from jaxgen.config import Data, Drawing, Optimizer, Train
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.lora import Lora
from tiny import DIT_MODEL as model
steady = Optimizer(decay="constant", warmup=0)  # any number of steps is then the same program
common = dict(
    data=Data(name="imagefolder:pictures", size=16),
    train=Train(steps=4, batch=8, log_every=1, sample_every=0, checkpoint_every=2),
    optimizer=steady,
    shown=tuple(f"square {number}" for number in range(8)),
)
codec = AutoencoderConfig(block_out=(8, 8), layers=1, groups=4, mid_attention=False)
one = dict(sampler_steps=1, guidance=1.0)
"""
# The networks of the latent configs that come with jaxgen, of one level, which compiles fast; and a
# rate at which they say something after 4 steps.
LATENT = """
from jaxgen import config as configs
small = dataclasses.replace
like = configs.load("latent_diffusion").model
text = small(like.text, width=16, layers=1, length=6)
unet = small(
    like.unet, block_out=(8,), attention=(False,), transformer_depth=(1,), heads=(2,),
    context_width=16,
)
latent = small(like, text=text, unet=unet)
hasty = dict(autoencoder=codec, model=latent) | one | common
hasty |= dict(optimizer=Optimizer(learning_rate=3e-2, decay="constant", warmup=0))
"""
CONFIGS = {
    "teacher": "config = Diffusion(name='teacher', model=model, **one, **common)",
    "gan": """
from jaxgen.methods.gan import Gan
from jaxgen.models.gan import GanConfig
from jaxgen.text.encoder import TextConfig
config = Gan(
    name='gan', text=TextConfig(width=16, layers=1, heads=2, length=6),
    model=GanConfig(noise=8, condition=16, generator=(8, 8), discriminator=(8, 8), patch=2),
    discriminator_optimizer=steady, **common,
)
""",
    "vae": """
from jaxgen.methods.vae import Vae
from jaxgen.models.patch_discriminator import PatchDiscriminatorConfig
config = Vae(
    name='vae', autoencoder=codec, taps=(0,), discriminator_optimizer=steady,
    discriminator=PatchDiscriminatorConfig(width=8, layers=1), **common,
)
""",
    "latent": LATENT + "config = Diffusion(name='latent', codec='runs/vae', **hasty)",
    "add_latent": LATENT
    + """
from jaxgen.methods.add import Add
from jaxgen.models.judge import JudgeConfig
config = Add(
    name='add_latent', teacher='runs/latent', codec="the teacher's", judge_optimizer=steady,
    judge=JudgeConfig(taps=(0,), resize=32, augment=()), student_steps=1, **hasty,
)
""",
    "threshold": """
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion
model = dataclasses.replace(model, prediction='x0', schedule=Schedule(kind='flow'))
config = ThresholdDiffusion(name='threshold', model=model, **one, **common)
""",
    "ladd": """
from jaxgen.methods.ladd import Ladd
config = Ladd(
    name='ladd', teacher='runs/teacher', model=model, judge_optimizer=steady,
    drawn=Drawing(count=12, steps=1, guidance=1.0), warmup_steps=2, **one, **common,
)
""",
    "tuned": """
config = Diffusion(
    name='tuned', init_from='runs/teacher', lora=Lora(rank=2, merge=False), model=model,
    **one, **common,
)
""",
}
OUT = "add_latent"  # what is exported
BOTH = """
import sys
from jaxgen import export, sample, train
for door, *arguments in {doors}:
    sys.argv = [door, *arguments]
    getattr(globals()[door], 'main')()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"square {number}"}))
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(HEAD + text)
    return folder


def doors(folder: Path, *commands: tuple[str, ...]) -> str:
    program = BOTH.format(doors=repr([list(command) for command in commands]))
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # Of a number that every door takes, whatever its batch, as they share a process.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = flags
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", CONFIGS)  # in this order: some build on others
def test_trained_taken_up_again_and_sampled(name: str, folder: Path) -> None:
    train = ("train", f"--config={name}.py")
    # As many as a batch, and as are shown: what is compiled once serves everywhere.
    asked = [f"--prompt=square {number}" for number in range(8)]
    if name == "vae":
        asked = [f"--image=pictures/{number}.png" for number in range(8)]
    said = doors(
        folder,
        (*train, "--train.steps=2"),
        (*train, "--train.steps=4"),
        ("sample", f"--run=runs/{name}", *asked, f"--out={name}.png"),
        *([("export", f"--run=runs/{name}", "--to=diffusers", "--out=out")] if name == OUT else []),
    )
    assert "going on from the checkpoint of step 2" in said
    log = (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == [1, 2, 3, 4]
    with Image.open(folder / f"{name}.png") as image:
        assert len(image.getcolors(1 << 20) or ()) > 8
    if name == "ladd":
        assert len(list((folder / "data" / "drawn").rglob("*.array_record*"))) == 1
    if name == "latent":
        assert list((folder / "data" / ".once").rglob("codes.npy"))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
@pytest.mark.parametrize("steps", [1, 50])
def test_diffusers_draws_what_a_student_without_published_weights_draws(
    steps: int, folder: Path
) -> None:
    theirs = DiffusionPipeline.from_pretrained(folder / "out")
    theirs.set_progress_bar_config(disable=True)
    prompts = ["square 3", "a red square number twelve, no circle"]  # some of it is cut
    run = folder / "runs" / OUT
    ours, expected = published.both(run, theirs, prompts, Sampler(solver="ddim", steps=steps))
    np.testing.assert_allclose(ours, expected, atol=1.01 / 255)
    assert np.abs(expected[0] - expected[1]).max() > 5 / 255
