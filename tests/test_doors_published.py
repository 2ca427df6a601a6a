"""From a folder of diffusers to a one-step student and back: trained, exported, opened there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import published
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxgen import methods, stages
from jaxgen.diffusion.sampler import Sampler
from jaxgen.text import tokenizer as words

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
CONFIG = """
from pathlib import Path
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.add import Add
from jaxgen.models.judge import JudgeConfig
from jaxgen.weights import pipelines
like, _ = pipelines.describe(Path("teacher"))
steady = Optimizer(learning_rate=1e-3, decay="constant", warmup=0)
config = Add(
    name="student", teacher="teacher", codec="the teacher's", model=like.model,
    autoencoder=like.autoencoder, data=Data(name="imagefolder:pictures", size=16),
    judge=JudgeConfig(taps=(0,), resize=32, augment=()), student_steps=1, sampler_steps=1,
    guidance=1.0, train=Train(steps=3, batch=4, log_every=1, sample_every=0),
    optimizer=steady, judge_optimizer=steady, shown=("a red heart",) * 4, text_once=True,
)
"""
# One process for all doors: most of what each would do is to import and to compile the same again.
PROGRAM = """
import runpy, sys
for door, *arguments in {doors}:
    sys.argv = [door, *arguments]
    runpy.run_module("jaxgen." + door, run_name="__main__")
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A folder with a published teacher, its student in runs/student, exported to student/."""
    folder = tmp_path_factory.mktemp("published")
    published.write(folder / "teacher", published.FAMILIES["sd15"])
    for file in (folder / "teacher").rglob("*.safetensors"):  # as half of what is published is
        state = {name: leaf.astype(np.float16) for name, leaf in load_file(file).items()}
        save_file(state, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    (folder / "config.py").write_text(CONFIG)
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        picture.save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a red heart, une pomme verte")
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    doors = [
        ("train", "--config=config.py"),
        ("export", "--run=runs/student", "--out=student"),
        ("export", "--weights=runs/student", "--out=flat", "--to=safetensors"),
        ("export", "--run=runs/student", "--out=program", "--to=stablehlo"),
        ("sample", "--weights=teacher", "--prompt=a red heart", "--negative-prompt=lemons",
         "--guidance=2", "--start=red.png", "--strength=0.5", "--steps=4", "--size=24",
         "--dtype=bfloat16"),
    ]  # fmt: skip
    one_device = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(doors=doors)],
        cwd=folder, text=True, capture_output=True, check=False,
        env=os.environ | {"XLA_FLAGS": one_device},  # whatever the batch: they are chosen but once
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_published_weights_are_sampled_with_every_option(student):
    with Image.open(student / "sample.png") as image:
        assert image.size == (24, 24)
        assert len(image.getcolors(1 << 20) or ()) > 8


def test_the_student_is_trained_in_float32(student):
    trained = stages.read(student / "runs" / "student").weights["denoiser"]
    teacher = stages.read(student / "teacher").weights["denoiser"]
    leaves = zip(jax.tree.leaves(trained), jax.tree.leaves(teacher), strict=True)
    moved = [(leaf.dtype, not np.array_equal(leaf, first)) for leaf, first in leaves]
    assert {str(dtype) for dtype, _ in moved} == {"float32"}
    assert all(change for _, change in moved)


def test_one_file_has_every_tensor(student):
    flat = load_file(student / "flat" / "weights.safetensors")
    own = flatten_dict(stages.read(student / "runs" / "student").weights, sep=".")
    assert flat.keys() == own.keys()
    for name, tensor in own.items():
        np.testing.assert_array_equal(flat[name], tensor, err_msg=name)


def test_the_program_draws_without_jaxgen_what_jaxgen_draws(student):
    """Through the script that is written beside it, for two prompts, in a process of its own."""
    folder = student / "program"
    assert "jaxgen" not in "".join(
        line for line in (folder / "draw.py").read_text().splitlines() if "import" in line[:7]
    )
    prompts = ["a red heart", "12 lemons " * 40 + "and a cat"]
    done = subprocess.run(
        [sys.executable, "draw.py", "--seed=5", *(f"--prompt={prompt}" for prompt in prompts)],
        cwd=folder, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "only the first 75 tokens of a prompt fit, cut: " in done.stderr
    assert done.stderr.count("and a cat") == 1
    drawn = np.stack([np.asarray(Image.open(folder / f"drawn_{n}.png")) for n in range(2)])
    loaded, draw = published.program(student / "runs" / "student")
    assert loaded.step == 3
    ids = words.encode(loaded.tokenizer, prompts, 77)
    sampler = next(iter(methods.of(loaded.config).samplers(loaded.config).values()))
    ours = np.asarray(draw(loaded.weights, jax.random.key(5), ids, sampler))
    assert np.abs(drawn.astype(int) - ours).max() <= 1


@pytest.mark.parametrize("steps", [1, 4])
def test_diffusers_draws_what_the_student_draws(student, steps):
    sampler = Sampler(solver="euler_ancestral", steps=steps)
    theirs = DiffusionPipeline.from_pretrained(student / "student")
    theirs.set_progress_bar_config(disable=True)
    prompts = ["a red heart", "12 lemons"]
    ours, expected = published.both(student / "runs" / "student", theirs, prompts, sampler)
    np.testing.assert_allclose(ours, expected, atol=1.01 / 255)
