"""The command lines, as a user runs them: in processes of their own, on pictures of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import drawn_on

from jaxgen import sample, train
from jaxgen.runtime import mesh as meshes

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
}
FRENCH = {"red": "rouge", "green": "vert", "blue": "bleu", "yellow": "jaune"}

TEACHER = """
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from tiny import DIT_MODEL
config = Diffusion(
    name="teacher",
    data=Data(name="imagefolder:pictures", size=16),
    model=DIT_MODEL,
    train=Train(steps=40, batch=8, log_every=1, sample_every=0, checkpoint_every=10),
    optimizer=Optimizer(decay="constant"),  # so that any number of steps is the same program
    sampler_steps=3,
)
"""
STUDENT = """
from jaxgen import config as configs
from jaxgen.config import Train
from jaxgen.methods.add import Add
from jaxgen.models.judge import JudgeConfig
teacher = configs.load("teacher.py")
config = Add(
    name="student",
    teacher="train",
    teacher_config="teacher.py",
    data=teacher.data,
    model=teacher.model,
    judge=JudgeConfig(taps=(1,), resize=32),
    train=Train(steps=4, batch=8, log_every=1, sample_every=2, checkpoint_every=2),
    sampler_steps=3,
)
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to work: eight pictures with captions, and two configs."""
    place = tmp_path_factory.mktemp("work")
    pictures = place / "pictures"
    pictures.mkdir()
    lines = []
    for name, colour in COLOURS.items():
        for shape in ("square", "stripe"):
            image = np.full((16, 16, 3), 255, np.uint8)
            image[4:12, 4:12] = colour
            if shape == "stripe":
                image[:, 6:10] = colour
            Image.fromarray(image).save(pictures / f"{name}_{shape}.png")
            text = f"{name} {shape}, {FRENCH[name]}"
            lines.append(json.dumps({"file_name": f"{name}_{shape}.png", "text": text}))
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    (place / "teacher.py").write_text(TEACHER)
    (place / "student.py").write_text(STUDENT)
    return place


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess:
    """With a rule for how arrays lie that is for none of the teacher's own."""
    options = ("--teacher-train-steps=4", "--mesh.rules=judge/=whole")
    return run(folder, "jaxgen.train", "--config=student.py", *options)


def test_train_prints_the_plan_trains_both_stages_and_names_its_pictures(
    folder: Path, trained: subprocess.CompletedProcess
) -> None:
    assert trained.returncode == 0, trained.stderr[-2000:]
    plan = trained.stdout.split("data:")[0]
    for words in ("1. student_teacher", "2. student", "4 steps of 8 images to do",
                  "parameters: generator", "judge", "runs/student", "(frozen) 4.63 M"):  # fmt: skip
        assert words in plan
    for title in ("teacher, 3 steps", "teacher, 1 step", "student, 1 step", "student, 4 steps"):
        assert title in trained.stdout
    assert "samples: runs/student/samples/final.png" in trained.stdout
    said = [line for line in trained.stdout.splitlines() if line.startswith("student: ")]
    assert said.count("student: compiling the samplers") == 1
    assert said[-1] == "student: drawing the samples"
    pictures = {p.name for p in (folder / "runs/student/samples").iterdir()}
    assert pictures == {"step_000002.png", "final.png"}
    for name in ("config.json", "tokenizer.json", "model.safetensors", "metrics.jsonl"):
        assert (folder / "runs/student" / name).is_file()


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a door in the folder and in this process, for speed: its devices are chosen already."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)

    def here(main: Callable[[], None], *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["door", *arguments])
        main()

    return here


@pytest.fixture
def refused(here, refused) -> Callable[..., str]:
    return refused


def test_train_again_finds_everything_done(trained, here, capsys) -> None:
    here(train.main, "--config=student.py", "--teacher-train-steps", "4")
    said = capsys.readouterr().out
    assert "student_teacher: finished" in said
    assert "student: finished; samples: runs/student/samples" in said
    assert "compil" not in said


def test_a_run_of_another_config_is_refused_by_the_field(folder: Path, trained, refused) -> None:
    name = "--name=student_teacher"
    line = refused(train.main, "--config=teacher.py", name, "--guidance=7")
    assert line.startswith("jaxgen: runs/student_teacher holds a run with")
    assert "guidance 3.0, not 7.0" in line
    line = refused(train.main, "--config=student.py", name)
    assert "runs/student_teacher holds a run of diffusion, not add" in line


def test_sample_draws_in_two_languages_and_says_what_it_does_not_know(
    folder: Path, trained, here
) -> None:
    drawn = run(
        folder, "jaxgen.sample", "--run=runs/student", "--prompt", "un carré rouge",
        "--prompt", "a blue square", "--steps=1", "--seed=0", "--out=both.png",
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr[-2000:]
    assert "both.png: 2 image(s) of 16 x 16 pixels, 1 step(s)" in drawn.stdout
    told = [line for line in drawn.stderr.splitlines() if line.startswith("jaxgen: prompt")]
    assert [line.partition(": unknown to the model: ")[2] for line in told] == ["un, carré", "a"]
    rouge, blue = drawn_on(folder / "both.png", count=2, across=2)[:, 0]
    assert np.any(rouge != blue)
    names = {"one.png": 0, "again.png": 0, "other.png": 1}
    for name, seed in names.items():
        options = ("--prompt=a blue square", f"--seed={seed}", f"--out={name}")
        here(sample.main, "--run=runs/student", *options)
    assert size_of(folder / "one.png") == (16, 16)
    one, again, other = ((folder / name).read_bytes() for name in names)
    assert one == again != other


def test_variations_of_a_prompt_are_files_of_their_own(folder: Path, trained, here, capsys) -> None:
    def draws(*options: str) -> None:
        prompts = ("--prompt=red square", "--prompt=blue square")
        here(sample.main, "--run=runs/student_teacher", "--steps=3", *prompts, *options)

    draws("--count=3", "--out=many/", "--eta=1")
    assert "many/0000.png to 0005.png: 6 image(s) of 16 x 16 pixels" in capsys.readouterr().out
    files = sorted((folder / "many").iterdir())
    assert [file.name for file in files] == [f"000{number}.png" for number in range(6)]
    each = np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)
    assert all(np.abs(a - b).max() > 8 for n, a in enumerate(each) for b in each[:n])
    # Ddim's eta of 1 is ddpm; and the sheet shows the same six, each with its caption.
    draws("--count=3", "--out=sheet.png", "--solver=ddpm")
    assert np.abs(drawn_on(folder / "sheet.png", count=6, across=4)[:, 0] - each).max() <= 1
    # A folder that is there; the first image has its noise whatever else is drawn.
    here(sample.main, "--run=runs/student_teacher", "--steps=3", "--prompt=red square",
         "--solver=ddpm", "--out=many")  # fmt: skip
    assert np.abs(np.asarray(Image.open(files[0])).astype(int) - each[0]).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run=runs/nothing", "--prompt=cat"], "runs/nothing is no run folder"),
        (["--weights=nowhere", "--prompt=cat"], "nor the model_index.json of published weights"),
        (["--run=runs/student"], "--prompt is missing"),
        (["--run=runs/student", "--prompt= "], "has no words"),
        (["--run=runs/student", "--prompt=cat", "--steps=0"], "1 to 1000"),
        (["--run=runs/student", "--prompt=cat", "--steps=1001"], "1 to 1000"),
        (["--run=runs/student", "--prompt=cat", "--out=x.jpg"], "--out x.jpg"),
        (["--run=runs/student", "--prompt=cat", "--out=no/where.png"], "no is no folder"),
        (["--run=runs/student", "--prompt=cat", "--solver=magic"], "'magic'"),
        (["--run=runs/student", "--prompt=cat", "--count=0"], "--count is 0; give 1 or more"),
        (["--run=runs/student", "--prompt=cat", "--count=10001"], "more than 10000 images"),
        (["--run=runs/student", "--prompt=cat", "--eta=1.5"], "eta is 1.5: it must be from 0 to"),
        (["--run=runs/student", "--prompt=cat", "--eta=1", "--solver=euler"], "only ddim knows"),
        (["--run=runs/student", "--prompt=cat", "--out=no/where/"], "no is no folder"),
        (["--run=runs/student", "--prompt=cat", "--out=teacher.py/"], "teacher.py is a file"),
        (["--run=runs/student", "--prompt=cat", "--out="], "is no .png file name, nor a folder"),
    ],
)
def test_sample_refuses_in_one_line_and_writes_nothing(
    folder: Path, trained, refused, arguments: list[str], words: str
) -> None:
    before = {p for p in folder.iterdir() if p.suffix == ".png"}
    assert words in refused(sample.main, *arguments)
    assert {p for p in folder.iterdir() if p.suffix == ".png"} == before


def test_train_refuses_a_folder_that_cannot_be_made(folder: Path, trained, refused) -> None:
    (folder / "file").write_text("")
    for where in ("file", "file/runs"):
        line = refused(train.main, "--config=teacher.py", f"--workdir={where}")
        assert f"--workdir {where}: {folder}/file is no folder" in line


def test_without_the_right_to_write_nothing_is_begun_and_what_is_done_is_done(
    folder: Path, trained, refused, here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with monkeypatch.context() as patched:
        patched.setattr(train, "_print_plan", lambda _: pytest.fail("it is too late"))
        line = refused(train.main, "--config=teacher.py", "--workdir=other/runs")
    assert f"--workdir other/runs: no right to write to {folder}; choose another" in line
    here(train.main, "--config=student.py", "--teacher-train-steps=4")


def start(folder: Path, name: str, cache: bool = True) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxgen.train", "--config=teacher.py", f"--name={name}"],
        cwd=folder,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    out, _ = process.communicate()
    assert process.returncode == 0, out[-2000:]


def steps_logged(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def wait_for(process: subprocess.Popen, folder: Path, step: int) -> None:
    while steps_logged(folder) < step:
        assert process.poll() is None, process.stdout and process.stdout.read()[-2000:]
        time.sleep(0.02)


def test_killed_and_resumed_is_bit_for_bit_undisturbed(folder: Path, trained, refused) -> None:
    """And while the run lasts, even stopped, another process is refused its folder."""
    finish(start(folder, "whole", cache=False))  # so that it is compiled once more too
    killed = start(folder, "killed")
    try:
        wait_for(killed, folder / "runs/killed", 23)
        killed.send_signal(signal.SIGSTOP)  # or it might be done before the other asks
        line = refused(train.main, "--config=teacher.py", "--name=killed")
        assert "runs/killed is in use by another process" in line
    finally:
        killed.kill()
        killed.communicate()
    assert not (folder / "runs/killed/model.safetensors").exists(), "killed in mid-run"
    cut = start(folder, "killed")
    wait_for(cut, folder / "runs/killed", 33)
    cut.send_signal(signal.SIGINT)
    out, _ = cut.communicate()
    assert cut.returncode == 130, out
    assert "saving after this step; once more to stop at once" in out
    assert "going on from the checkpoint of step" in out
    assert "the same command goes on from there" in out
    finish(start(folder, "killed"))
    for name in ("model.safetensors", "metrics.jsonl"):
        whole, mended = (folder / "runs" / r / name for r in ("whole", "killed"))
        assert whole.read_bytes() == mended.read_bytes(), name
