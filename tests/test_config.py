"""Configs: found by name or path, overridden, saved; bad input in one line."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest

from jaxgen import cli
from jaxgen import config as configs
from jaxgen.errors import UserError


def test_a_field_that_a_config_has_not_is_refused() -> None:
    config = configs.load("gan")
    fields = json.loads(configs.to_json(config))
    fields["model"]["depth_of_field"] = 3
    with pytest.raises(UserError, match=r"^here has the field model.depth_of_field, which a Gan"):
        configs.from_json(type(config), json.dumps(fields), "here")


@pytest.mark.parametrize("name", configs.known())
def test_every_config_checks_is_hashable_survives_json_and_says_what_it_takes(name: str) -> None:
    config = configs.load(name)
    config.check()
    assert hash(config) == hash(dataclasses.replace(config))
    assert configs.from_json(type(config), configs.to_json(config), "here") == config
    text = (Path(configs.__file__).parent.parent / "configs" / f"{name}.py").read_text()
    assert f"--config={name}" in text.split('"""')[1], "the docstring gives the command"
    assert config.name == name


def test_fields_are_overridden_at_any_depth() -> None:
    config = cli.configured(
        ["--config=diffusion", "--optimizer.learning-rate", "3e-4", "--train.steps=7"], "train"
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.train.steps == 7
    before = configs.load("diffusion")
    assert set(configs.differences(before, config)) == {"optimizer.learning_rate", "train.steps"}


def test_a_config_may_be_a_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxgen.methods.diffusion import Diffusion\nconfig = Diffusion(name='mine')"
    )
    assert cli.configured([f"--config={file}"], "train").name == "mine"


@pytest.mark.parametrize(("size", "fits"), [(512, True), (520, True), (1080, True), (516, False)])
def test_pictures_of_stable_diffusion_have_any_side_of_whole_codes(size: int, fits: bool) -> None:
    config = configs.load("add_sd21")
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, size=size))
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="multiple of 8"):
        other.check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=diffusin"], ["diffusin", "did you mean diffusion?", "add"]),
        (["--config="], ["--config needs a name"]),
        (["--optimizer.learning-rat", "1"], ["did you mean --optimizer.learning-rate?"]),
        (["--train.steps", "many"], ["--train.steps 'many' is no whole number"]),
        (["--sampler-steps", "x"], ["--sampler-steps 'x' is no whole number"]),
        (["--optimizer.learning-rate=x"], ["--optimizer.learning-rate 'x' is no number"]),
        (["--config=gan", "--gamma", "1"], ["--gamma needs 2 value(s)"]),
        (["--seed"], ["--seed needs 1 value(s)"]),
        (["--config=add", "--seed=1", "2"], ["unexpected 2", "--option=VALUE"]),
        (["--train.steps", "0"], ["--train.steps is 0"]),
        (["--train.batch=-4"], ["--train.batch is -4"]),
        (["--seed=-1"], ["--seed is -1"]),
        (["--optimizer.learning-rate=nan"], ["--optimizer.learning-rate is nan"]),
        (["--optimizer.clip=0"], ["--optimizer.clip is 0"]),
        (["--optimizer.b1=1.5"], ["--optimizer.b1 is 1.5"]),
        (["--optimizer.weight-decay=nan"], ["--optimizer.weight-decay is nan"]),
        (["--config=gan", "--gamma", "10", "nan"], ["--gamma is (10.0, nan)"]),
        (["--config=add", "--judge.features=foo"], ["--judge.features 'foo'", "efficientnet"]),
        (["--config=add", "--judge.augment", "foo"], ["--judge.augment 'foo'", "cutout"]),
        (["--config=add", "--judge-optimizer.clip=0"], ["--judge-optimizer.clip is 0"]),
        (["--config=add", "--frequency", "1", "2"], ["--frequency has 2", "4 --student-steps"]),
        (["--config=add", "--frequency", "0", "1", "1", "1"], ["--frequency", "the first above 0"]),
        (["--config=add", "--frequency", "1", "nan", "1", "1"], ["--frequency", "from 0 up"]),
        (["--config=add", "--frequency", "inf", "1", "1", "1"], ["--frequency", "from 0 up"]),
        (["--model.unet.added-width", "5"], ["--model.unet.added-width is 5", "64"]),
        (["--model.schedule.shift", "0"], ["shift is 0"]),
        (["--train.ema=1.5"], ["--train.ema is 1.5"]),
        (["--name", "../elsewhere"], ["--name"]),
        (["--workdir=s3://bucket/runs"], ["--workdir s3://bucket/runs", "gs://BUCKET"]),
        (["--train.accumulate=0"], ["--train.accumulate is 0"]),
        (["--train.steps=10", "--train.accumulate=4"], ["10 is not a multiple", "accumulate 4"]),
        (["--hosts.count=2", "--hosts.index=2"], ["--hosts.index is 2", "0 to 1"]),
        (["--hosts.count=0"], ["--hosts.count is 0", "number of processes"]),
        (["--hosts.coordinator=here"], ["--hosts.coordinator 'here'", "HOST:PORT"]),
        (["--hosts.coordinator=here:99999"], ["'here:99999'", "a port from 1 to 65535"]),
        (["--hosts.coordinator=here:0"], ["'here:0'", "a port from 1 to 65535"]),
        (["--data.root=gs://bucket/data"], ["--data.root gs://bucket/data", "of this machine"]),
        (["--data.root=pyproject.toml"], ["--data.root pyproject.toml", "is no folder"]),
        (["--name", "a" * 256], ["--name aaa", "256 letters", "255 bytes"]),
        (["--name", "é" * 128], ["128 letters", "255 bytes"]),
        (["--hosts.count=2", "--hosts.index=1"], ["--hosts.count 2 needs --hosts.coordinator"]),
        (["--hosts.wait=0"], ["--hosts.wait is 0"]),
        (["--sampler-steps", "0"], ["0", "1 to 1000"]),
        (["--sampler-steps", "1001"], ["1001", "1 to 1000"]),
        (["--data.size", "31"], ["side 31", "multiple of --model.unet.patch 2", "--data.size"]),
        (["--model.text.width", "128"], ["128", "64"]),
        (["--model.prediction", "epsilon"], ["epsilon"]),
        (["--model.prediction=noise"], ["--model.prediction 'noise' is none of 'epsilon'"]),
    ],
)
def test_bad_input_is_one_line_that_names_it(arguments: list[str], words: list[str]) -> None:
    if not arguments[0].startswith("--config"):
        arguments = ["--config=diffusion", *arguments]
    with pytest.raises(UserError) as caught:
        cli.configured(arguments, "train")
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_a_config_that_does_not_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("config = nothing")
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(UserError, match=r"broken\.py does not run: NameError"):
        configs.load(str(tmp_path / "broken.py"))
    with pytest.raises(UserError, match=r"empty\.py binds no `config`"):
        configs.load(str(tmp_path / "empty.py"))


def test_help_lists_every_option_with_default_and_explanation(
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.configured(["--config=add", "--help"], "train")
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--optimizer.learning-rate", "--teacher", "--judge.taps", "--data.name"):
        assert option in text
    assert "λ, the weight of the distance to the teacher" in text
    assert "default: 10000.0" in text
