"""Who may teach: a diffusion run, and no other, whatever networks it has."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxgen import config as configs
from jaxgen import stages, train
from jaxgen.config import Experiment
from jaxgen.errors import UserError
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.text_to_image import TextToImage
from jaxgen.stages import Loaded
from jaxgen.text import tokenizer as words


@pytest.mark.parametrize("name", ["gan", "vae", "classifier", "threshold_diffusion"])
def test_a_student_asked_of_another_run_is_refused_by_its_method(name: str) -> None:
    student, other = configs.load("add"), configs.load(name)
    with pytest.raises(
        UserError, match=f"--teacher runs/x is no diffusion model but a run of {name}"
    ):
        student.accept("teacher", other, "runs/x")
    with pytest.raises(UserError, match=f"--teacher-config {name} is a config of {name}"):
        dataclasses.replace(student, teacher_config=name).stage("teacher")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dit", r"model\.network is unet, that of --teacher-config dit is dit"),
        ("flow_matching", r"model\.prediction is x0, that of .* flow_matching is flow"),
        ("latent_diffusion", r"model\.schedule\.kind is flow, that of .* is scaled_linear"),
    ],
)
def test_a_teacher_config_of_another_kind_of_model_is_refused(name: str, told: str) -> None:
    student = dataclasses.replace(configs.load("add"), teacher="train", teacher_config=name)  # pyright: ignore
    with pytest.raises(UserError, match=told):
        student.stage("teacher")


@pytest.mark.parametrize("name", ["add_dit", "ladd_dit"])
def test_a_student_that_is_a_transformer_has_one_for_a_teacher(name: str, tmp_path: Path) -> None:
    student = dataclasses.replace(configs.load(name), workdir=str(tmp_path))
    teacher, last = stages.plan(student)
    assert isinstance(last.config, TextToImage)
    assert last.config.model.network == "dit"
    assert teacher.config.name == "dit"


def test_how_a_network_computes_is_not_what_its_weights_are(
    add_config: Add, diffusion_config: Diffusion
) -> None:
    def computed(config, dtype, remat, once):
        model = config.model
        model = dataclasses.replace(
            model,
            text=dataclasses.replace(model.text, dtype=dtype),
            unet=dataclasses.replace(model.unet, dtype=dtype, remat=remat, gather_once=once),
            dit=dataclasses.replace(model.dit, dtype=dtype, remat=remat, gather_once=once),
        )
        codec = dataclasses.replace(config.autoencoder, dtype=dtype, remat=remat)
        return dataclasses.replace(config, model=model, autoencoder=codec, codec="runs/vae")

    quick, plain = ("bfloat16", "blocks", True), ("float32", "none", False)
    for mine, its in ((quick, plain), (plain, quick)):
        student, teacher = computed(add_config, *mine), computed(diffusion_config, *its)
        student.accept("teacher", teacher, "runs/t")
    wide = dataclasses.replace(diffusion_config.model.dit, width=32)
    other = dataclasses.replace(
        diffusion_config, model=dataclasses.replace(diffusion_config.model, dit=wide)
    )
    with pytest.raises(
        UserError, match=r"model\.dit\.width is 16, that of the teacher runs/t is 32"
    ):
        add_config.accept("teacher", other, "runs/t")


def test_a_teacher_of_other_words_is_refused_and_base_weights_learn_them(
    add_config: Add, diffusion_config: Diffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = words.build(["red square"], french=2, english=0)
    weights = {"met": frozenset(map(known.token_to_id, ("red", "square")))}
    method = SimpleNamespace(seen_words=lambda weights: weights["met"])
    monkeypatch.setattr(train.methods, "of", lambda config: method)
    found = Loaded(diffusion_config, known, weights, 1, configs.Path("runs/t"), ())  # pyright: ignore

    def source(*captions: str) -> SimpleNamespace:
        return SimpleNamespace(captions=[(caption,) for caption in captions])

    def asked(config: Experiment, role: str, *captions: str):
        return train._tokenizer(config, {role: found}, source(*captions))  # pyright: ignore

    assert asked(add_config, "teacher", "red fish", "a square") is known
    elsewhere = dataclasses.replace(
        add_config, data=dataclasses.replace(add_config.data, name="digits")
    )
    with pytest.raises(UserError, match=r"runs/t was trained with other words: .*'blue fish'"):
        asked(elsewhere, "teacher", "blue fish", "green bird", "red square")
    with pytest.raises(UserError, match=r"too little, 1 step\(s\): .*; train it longer$"):
        asked(add_config, "teacher", "blue fish", "green bird", "red square")
    trained_first = dataclasses.replace(add_config, teacher="train")
    with pytest.raises(UserError, match=r"too little, 1 step\(s\): .* more --teacher-train-steps$"):
        asked(trained_first, "teacher", "blue fish", "green bird", "red square")
    grown = asked(diffusion_config, "init_from", "blue fish")
    assert grown.token_to_id("fish") >= known.get_vocab_size()
