"""From a folder of diffusers to a one-step student and back: trained, exported, opened there."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import published
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from einops import rearrange
from PIL import Image

from jaxgen import methods, stages
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
    optimizer=steady, judge_optimizer=steady, shown=("a red heart",) * 4,
)
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A folder with a published teacher, its student in runs/student, exported to student/."""
    folder = tmp_path_factory.mktemp("published")
    published.write(folder / "teacher", published.FAMILIES["sd15"])
    (folder / "config.py").write_text(CONFIG)
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        picture.save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a red heart, une pomme verte")
    doors = [("train", "--config=config.py"),
             ("export", "--run=runs/student", "--out=student")]  # fmt: skip
    for door, *arguments in doors:
        done = subprocess.run(
            [sys.executable, "-m", f"jaxgen.{door}", *arguments],
            cwd=folder, text=True, capture_output=True, check=False,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("steps", [1, 4])
def test_diffusers_draws_what_the_student_draws(student, monkeypatch, steps):
    loaded = stages.read(student / "runs" / "student")
    assert loaded.step == 3
    method = methods.of(loaded.config)
    sampler = method.student_sampler(loaded.config, 1)
    sampler = type(sampler)(solver="euler_ancestral", steps=steps)
    prompts = ["a red heart", "12 lemons"]
    ids = words.encode(loaded.tokenizer, prompts, 77)
    key = jax.random.key(1)
    program = jax.jit(functools.partial(method.sample, loaded.config), static_argnums=3)
    ours = np.asarray(program(loaded.weights, key, ids, sampler))

    theirs = DiffusionPipeline.from_pretrained(student / "student")
    theirs.set_progress_bar_config(disable=True)
    noise_key, sampler_key = jax.random.split(key)
    shape = (2, 8, 8, 4)
    draws = [jax.random.normal(noise_key, shape)]
    draws += [jax.random.normal(jax.random.fold_in(sampler_key, i), shape) for i in range(steps)]
    first, *others = [torch.tensor(np.asarray(rearrange(d, "b h w c -> b c h w"))) for d in draws]
    later = iter(others)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
        lambda *_, **__: next(later),
    )
    expected = theirs(
        prompts, num_inference_steps=steps, guidance_scale=0.0, latents=first, output_type="np"
    ).images
    assert expected.std() > 0.02
    np.testing.assert_allclose(ours / 255, expected, atol=1.01 / 255)
