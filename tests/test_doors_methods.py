"""Every method through the doors: trained, taken up again, sampled; all in one other process."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from tiny import drawn_on

from jaxgen import train
from jaxgen.diffusion.sampler import Sampler
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.reconstructions import psnr

SHOWN = ("square", "round") * 4
PICTURES = [f"pictures/{SHOWN[number % 8]}/{number}.png" for number in range(12)]
HEAD = f"""
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
    shown={SHOWN},
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
    model=GanConfig(noise=8, condition=16, generator=(8,), discriminator=(8,), patch=2),
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
    judge=JudgeConfig(taps=(0,), resize=32, augment=()), student_steps=1, regression=1.0,
    drawn=Drawing(count=12, steps=1, guidance=1.0), **hasty,
)
""",
    "threshold": """
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion
model = dataclasses.replace(model, prediction='x0', schedule=Schedule(kind='flow'))
common['optimizer'] = dataclasses.replace(steady, learning_rate=3e-2)  # or all is grey
config = ThresholdDiffusion(name='threshold', model=model, **one, **common)
""",
    "ladd": """
from jaxgen.methods.ladd import Ladd
config = Ladd(
    name='ladd', teacher='runs/teacher', model=model, judge_optimizer=steady,
    drawn=Drawing(count=12, steps=1, guidance=1.0), warmup_steps=2, text_once=True,
    **one, **common,
)
""",
    "tuned": """
config = Diffusion(
    name='tuned', init_from='runs/teacher', lora=Lora(rank=2, merge=False), model=model,
    **one, **common,
)
""",
    "whole": """
config = Diffusion(name='whole', init_from='runs/teacher', model=model, **one, **common)
""",
    "classifier": """
from jaxgen.methods.classifier import Classifier
from jaxgen.models.resnet import ResNetConfig
config = Classifier(
    name='classifier', resnet=ResNetConfig(widths=(8,), blocks=1, groups=4), augment=(), **common
)
""",
}
# As many as a batch, and as are shown: what is compiled once serves everywhere.
ASKED = {name: ["sample", *(f"--prompt={text}" for text in SHOWN)] for name in CONFIGS}
ASKED["vae"] = ["sample", *(f"--image={picture}" for picture in PICTURES[:8])]
ASKED["classifier"] = ["classify", *PICTURES[:8]]
OUT = "add_latent"  # what is exported
# One process for all: most of what each would do is to import and to compile the same again. What
# a run leaves that is killed after its second step is there when the last checkpoint and the
# weights are not.
PROGRAM = """
import contextlib, runpy, shutil, sys, traceback
from pathlib import Path

def door(name, *arguments):
    sys.argv = [name, *arguments]
    runpy.run_module("jaxgen." + name, run_name="__main__")

for name, asked in {asked}.items():
    run = Path("runs", name)
    with (
        open(name + ".log", "w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            door("train", "--config=" + name + ".py")
            shutil.copy(run / "metrics.jsonl", name + ".jsonl")
            shutil.rmtree(run / "checkpoints/4")
            (run / "model.safetensors").rename(name + ".safetensors")
            door("train", "--config=" + name + ".py")
            door(*asked, "--run=" + str(run))
            if Path("sample.png").exists():
                Path("sample.png").rename(name + ".png")
            if name == "{out}":
                door("export", "--run=" + str(run), "--to=diffusers", "--out=out")
            print("well done")
        except BaseException:
            traceback.print_exc()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    rng = np.random.default_rng(0)
    lines = []
    for number, picture in enumerate(PICTURES):
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / picture)
        text = f"{SHOWN[number % 8]} {number}"
        lines.append(json.dumps({"file_name": picture.removeprefix("pictures/"), "text": text}))
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    for name in ("one", "zebra"):
        (folder / name).mkdir()
        Image.new("RGB", (16, 16), "green").save(folder / name / "0.png")
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(HEAD + text)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    """What the doors said of each method; in the order of CONFIGS, for some build on others."""
    program = PROGRAM.format(asked=ASKED, out=OUT)
    # Of a number that every door takes, whatever its batch, as they share a process.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, env=environment)
    return {name: (folder / f"{name}.log").read_text() for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_taken_up_again_and_sampled(name: str, folder: Path, said: dict[str, str]) -> None:
    assert said[name].endswith("well done\n"), said[name][-2000:]
    assert "going on from the checkpoint of step 2" in said[name]
    whole, mended = folder / f"{name}.jsonl", folder / f"runs/{name}/metrics.jsonl"
    assert whole.read_bytes() == mended.read_bytes()
    assert [json.loads(line)["step"] for line in mended.read_text().splitlines()] == [1, 2, 3, 4]
    before, after = folder / f"{name}.safetensors", folder / f"runs/{name}/model.safetensors"
    assert before.read_bytes() == after.read_bytes(), "the last update, and the average"
    if name == "ladd":
        drawn = list((folder / "data" / "drawn").rglob("*.array_record*"))
        assert len(drawn) == 2, "add_latent's and its own"
        assert list((folder / "data" / ".once").rglob("text_tokens.npy"))
    if name == "latent":
        assert list((folder / "data" / ".once").rglob("codes.npy"))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("vae", "classifier")])
def test_each_prompt_has_a_drawing_of_its_own(
    name: str, folder: Path, said: dict[str, str]
) -> None:
    assert "8 image(s) of 16 x 16 pixels, 1 step(s)" in said[name]
    images = drawn_on(folder / f"{name}.png", count=8, across=4)[:, 0]
    assert len({image.tobytes() for image in images}) == 8
    assert images.std(axis=(1, 2)).min() > 1, "none of one colour"


def test_pictures_come_back_with_the_psnr_that_is_told_and_lines_end_where_the_next_begins(
    folder: Path, said: dict[str, str]
) -> None:
    images = drawn_on(folder / "vae.png", count=8, across=1, columns=8)
    for picture, shown in zip(PICTURES, images[:, 0], strict=False):
        with Image.open(folder / picture) as given:
            np.testing.assert_array_equal(shown, given)
    back = images[:, 1]
    told = re.findall(r"\d+\.\d(?=,| dB)", said["vae"].split("PSNR ")[-1])
    np.testing.assert_allclose([float(n) for n in told], psnr(images[:, 0], back), atol=0.06)
    assert len({image.tobytes() for image in back}) == 8
    np.testing.assert_array_equal(images[:, -1], np.roll(back, -1, axis=0))
    assert np.any(images[:, 4] != back)


def test_a_classifier_taken_up_again_tells_classes(said: dict[str, str]) -> None:
    for picture in PICTURES[:8]:
        first, second = said["classifier"].split(picture + "\n")[-1].splitlines()[:2]
        assert {first.split()[2], second.split()[2]} == set(SHOWN)
        shares = [float(line.split()[0]) for line in (first, second)]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert shares[0] >= shares[1]


@pytest.fixture
def refused(folder: Path, said, refused, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)  # the devices are chosen already
    return refused


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("latent", ["--data.size=32"], "run's data.size is 32, that of the codec runs/vae is 16"),
        (
            "latent",
            ["--autoencoder.latent-channels=8", "--model.unet.channels=8"],
            "run's autoencoder.latent_channels is 8, that of the codec runs/vae is 4",
        ),
        ("latent", ["--codec=runs/gan"], "--codec runs/gan is no autoencoder but a run of gan"),
        ("add_latent", ["--teacher=runs/gan"], "runs/gan is no diffusion model but a run of gan"),
        ("ladd", ["--data.name=imagefolder:zebra"], "runs/teacher was trained with other words"),
        ("tuned", ["--lora.targets=atn1"], "--lora.targets 'atn1' matches no matrix"),
        ("tuned", ["--data.name=imagefolder:one"], "has 1 picture(s) to learn from; other needs 2"),
        ("whole", ["--init-from=runs/gan"], "runs/gan is a run of gan, not of a diffusion model"),
        ("classifier", ["--data.name=imagefolder:one"], "one has pictures of one class; a"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_begun(
    name: str, options: list[str], line: str, folder: Path, refused
) -> None:
    assert line in refused(train.main, f"--config={name}.py", "--name=other", *options)
    assert not list(folder.glob("runs/other*"))


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
