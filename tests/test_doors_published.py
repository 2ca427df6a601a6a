"""From a folder of diffusers to a one-step student and back: trained, exported, opened there."""

import json
import os
import runpy
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

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of diffusers
]
# Of one level, which compiles fast; in tests/weights those of several go out and in.
SMALL = published.Family(
    unet=(
        ("block_out_channels", (16,)),
        ("down_block_types", ("CrossAttnDownBlock2D",)),
        ("up_block_types", ("CrossAttnUpBlock2D",)),
        ("attention_head_dim", 2),
        ("cross_attention_dim", 16),
    )
)
HEAD = """
from pathlib import Path
from jaxgen.config import Data, Drawing, Optimizer, Train
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.ladd import Ladd
from jaxgen.models.judge import JudgeConfig
from jaxgen.weights import pipelines
like, _ = pipelines.describe(Path("teacher"))
steady = Optimizer(learning_rate=1e-3, decay="constant", warmup=0)
common = dict(
    model=like.model, autoencoder=like.autoencoder, sampler_steps=1, guidance=1.0,
    data=Data(name="imagefolder:pictures", size=16), optimizer=steady,
    train=Train(steps=3, batch=4, log_every=1, sample_every=0), shown=("a red heart",) * 4,
)
student = common | dict(
    teacher="teacher", codec="the teacher's", student_steps=1, judge_optimizer=steady,
    text_once=True,
)
"""
CONFIGS = {
    "student": """
judge = JudgeConfig(taps=(0,), resize=32, augment=())
config = Add(name="student", judge=judge, **student)
""",
    "ladd": """
drawn = Drawing(count=4, steps=1, guidance=1.0)
config = Ladd(name="ladd", drawn=drawn, taps=(1,), warmup_steps=0, frequency=(), **student)
""",
    "tuned": "config = Diffusion(name='tuned', **common)",
    "coded": """
import dataclasses
from tiny import DIT_MODEL
codes = dataclasses.replace(DIT_MODEL, dit=dataclasses.replace(DIT_MODEL.dit, channels=4))
config = Diffusion(name="coded", **common | dict(model=codes))
""",
}
DRAWN = ("ladd", "tuned", "coded")
# A "!" is what pads captions for the second of two tokenizers, and a token all the same.
ASKED = ("--seed=5", "--prompt=a red heart! yes!!", "--prompt=12 lemons")
FEW = ("--steps=2", "--guidance=3")
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
    published.write(folder / "teacher", SMALL)
    for file in (folder / "teacher").rglob("*.safetensors"):  # as half of what is published is
        state = {name: leaf.astype(np.float16) for name, leaf in load_file(file).items()}
        save_file(state, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    published.write(folder / "xl", published.FAMILIES["sdxl"])
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(HEAD + text)
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        picture.save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a red heart, une pomme verte")
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    doors = [
        ("train", "--config=student.py"),
        ("export", "--run=runs/student", "--out=student"),
        ("export", "--weights=runs/student", "--out=flat", "--to=safetensors"),
        ("export", "--run=runs/student", "--out=program", "--to=stablehlo"),
        ("sample", "--weights=teacher", "--prompt=a red heart", "--negative-prompt=lemons",
         "--guidance=2", "--start=red.png", "--strength=0.5", "--steps=4", "--size=24",
         "--dtype=bfloat16"),
        ("train", "--config=ladd.py"),
        ("train", "--config=tuned.py", "--init-from=teacher", "--codec=teacher", "--lora.rank=2"),
        ("train", "--config=coded.py", "--codec=teacher"),
        *(("sample", f"--run=runs/{name}", "--prompt=a red heart", f"--out={name}.png")
          for name in DRAWN),
        ("export", "--weights=xl", "--out=xl_program", "--to=stablehlo", *FEW),
        ("sample", "--weights=xl", *ASKED, *FEW, "--out=xl_drawn/"),
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


def test_what_builds_on_published_weights_is_trained_and_drawn(student):
    teacher = flatten_dict(stages.read(student / "teacher").weights)
    moved = {}
    for name in DRAWN:
        with Image.open(student / f"{name}.png") as image:
            assert image.size == (16, 16)
            assert len(image.getcolors(1 << 20) or ()) > 8
        trained = flatten_dict(stages.read(student / "runs" / name).weights)
        for path, leaf in trained.items():
            assert np.isfinite(leaf).all(), path
            if path[0] == "codec":
                np.testing.assert_array_equal(leaf, np.float32(teacher[path]))
        assert {path for path in trained if path[0] == "codec"}
        if name != "coded":  # a network of its own
            changes = {path: leaf - np.float32(teacher[path]) for path, leaf in trained.items()}
            moved[name] = {path: change for path, change in changes.items() if change.any()}
    networks = {path for path in teacher if path[0] == "denoiser"}
    assert moved["ladd"].keys() == networks
    words = ("text", "embeddings_token_embedding", "embedding")
    assert words in moved["tuned"]
    adapted = {path: change for path, change in moved["tuned"].items() if path != words}
    assert adapted.keys() == {
        path for path in networks if {"attn1", "attn2"} & {*path} and path[-1] == "kernel"
    }
    for path, change in adapted.items():
        first, *_ = scales = np.linalg.svd(change, compute_uv=False)
        assert (scales[2:] < 1e-3 * first).all(), f"{path} is changed by more than rank 2"


def test_the_program_of_two_tokenizers_draws_what_sample_draws(student, monkeypatch):
    folder = student / "xl_program"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["draw.py", *ASKED])
    runpy.run_path("draw.py", run_name="__main__")
    facts = json.loads((folder / "program.json").read_text())
    assert len(set(facts["tokenizers"].values())) == 2, "their padding differs"
    for number in range(2):
        drawn = np.asarray(Image.open(folder / f"drawn_{number}.png")).astype(int)
        ours = np.asarray(Image.open(student / "xl_drawn" / f"000{number}.png"))
        assert np.abs(drawn - ours).max() <= 1
        assert ours.std() > 5
