"""Folders of diffusers against diffusers itself: from prompts to pixels, in and out."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import published
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxgen import config as configs
from jaxgen import methods, sample, stages
from jaxgen.config import Mesh
from jaxgen.diffusion import codec as codecs
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.models.autoencoder import SD_AUTOENCODER
from jaxgen.models.unet import SD15_UNET, SD21_UNET, SDXL_UNET
from jaxgen.runtime import mesh as meshes
from jaxgen.text.encoder import CLIP_L, OPENCLIP_BIGG, OPENCLIP_H
from jaxgen.weights import hub, outward, pipelines

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
PROMPTS = ["a red heart!", "trois pommes, yes!! vertes!"]
ANCESTRAL = Sampler(steps=4, solver="euler_ancestral", guidance=5.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes a family's miniature once; (folder, diffusers' pipeline)."""

    @functools.cache
    def write(family: str):
        path = tmp_path_factory.mktemp("published") / family
        return path, published.write(path, published.FAMILIES[family])

    return write


@pytest.mark.parametrize(
    ("family", "sampler", "negative", "start"),
    [
        ("sd15", Sampler(steps=20, guidance=5.0), "", False),
        ("sd21", Sampler(steps=20, guidance=5.0, strength=0.57), "lemons", True),
        ("sd21", Sampler(steps=20, guidance=5.0), "", False),
        ("sd21", ANCESTRAL, "", False),
        ("sd-turbo", Sampler(steps=1, solver="euler_ancestral"), "", False),
        ("sdxl", Sampler(steps=20, guidance=5.0), "", False),
        ("sdxl", ANCESTRAL, "", False),
        ("sdxl-turbo", Sampler(steps=1, solver="euler_ancestral"), "", False),
    ],
    ids=["sd15-ddim", "sd21-ddim-negative-from-images", "sd21-ddim", "sd21-ancestral", "turbo-one",
         "sdxl-ddim", "sdxl-ancestral", "sdxl-turbo-one"],
)  # fmt: skip
def test_draws_what_diffusers_draws(folder, family, sampler, negative, start):
    path, theirs = folder(family)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8) if start else None
    ours, expected = published.both(path, theirs, PROMPTS, sampler, negative, images)
    np.testing.assert_allclose(ours, expected, atol=1.01 / 255)
    # The captions say something: the same noise with the other one is another picture.
    swapped, expected = published.both(path, theirs, PROMPTS[::-1], sampler, negative, images)
    np.testing.assert_allclose(swapped, expected, atol=1.01 / 255)
    assert np.abs(ours - swapped).max(axis=(1, 2, 3)).min() > 8 / 255


@st.composite
def families(draw) -> published.Family:
    """Any small member: the tests above have one shape each."""
    levels = draw(st.integers(2, 3))
    widths = [4 * draw(st.integers(2, 5)) for _ in range(levels)]
    attends = [draw(st.booleans()) for _ in range(levels)]
    down = [f"{'CrossAttn' if attend else ''}DownBlock2D" for attend in attends]
    up = [f"{'CrossAttn' if attend else ''}UpBlock2D" for attend in attends[::-1]]
    text = 4 * draw(st.integers(2, 6))
    pair = draw(st.booleans())
    ids = 2 * draw(st.integers(1, 4))
    added = (
        ("addition_embed_type", "text_time"),
        ("addition_time_embed_dim", ids),
        ("projection_class_embeddings_input_dim", 6 * ids + published.PROJECTION),
    )
    return published.Family(
        act=draw(st.sampled_from(["quick_gelu", "gelu"])),
        padding=draw(st.sampled_from(["!", "<|endoftext|>"])),
        prediction=draw(st.sampled_from(["epsilon", "v_prediction"])),
        pair=pair,
        spread=draw(st.floats(0.02, 0.2)),
        unet=(
            ("block_out_channels", tuple(widths)),
            ("down_block_types", tuple(down)),
            ("up_block_types", tuple(up)),
            ("layers_per_block", draw(st.integers(1, 2))),
            ("norm_num_groups", 4),
            ("attention_head_dim", [draw(st.sampled_from([1, 2, 4])) for _ in widths]),
            ("transformer_layers_per_block", [draw(st.integers(1, 2)) for _ in widths]),
            ("use_linear_projection", draw(st.booleans())),
            ("upcast_attention", draw(st.booleans())),
            ("cross_attention_dim", text + (published.WIDTH_2 if pair else 0)),
            *(added if pair else ()),
        ),
        vae=(
            ("block_out_channels", (4 * draw(st.integers(1, 4)), 4 * draw(st.integers(1, 4)))),
            ("layers_per_block", draw(st.integers(1, 2))),
            ("scaling_factor", draw(st.floats(0.1, 1.0))),
            ("mid_block_add_attention", draw(st.booleans())),
        ),
        text=(
            ("hidden_size", text),
            ("num_hidden_layers", draw(st.integers(1, 3))),
            ("num_attention_heads", draw(st.sampled_from([1, 2, 4]))),
            ("intermediate_size", text * draw(st.integers(1, 4))),
        ),
    )


@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(
    kind=families(), batch=st.integers(1, 3), sides=st.tuples(st.integers(4, 9), st.integers(4, 9))
)
def test_networks_of_any_shape_are_those_of_diffusers(tmp_path_factory, kind, batch, sides):
    """Text encoders, UNet and autoencoder: by their tensors, as a picture rounds to grey levels."""
    path = tmp_path_factory.mktemp("any")
    theirs = published.write(path, kind)
    loaded = stages.read(path)
    config: Any = loaded.config
    prompts = ["a red heart!", "lemons yes!!", "un cœur"][:batch]
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(2, batch, *sides, 4)).astype(np.float32)
    image = rng.uniform(-1, 1, (batch, *(2 * side for side in sides), 3)).astype(np.float32)
    t = np.linspace(3, 987, batch, dtype=np.float32)
    ids = methods.encode(config, loaded.tokenizer, prompts)

    @jax.jit
    def run(weights):
        text = denoiser.encode(config.model, weights["text"], ids)
        codec = functools.partial(codecs.encode, config.autoencoder, weights["codec"])
        return {
            "tokens": text.tokens,
            "pooled": text.pooled,
            "unet": denoiser.output(config.model, weights["denoiser"], x, t, text),
            "codes": codec(image),
            "image": codecs.decode(config.autoencoder, weights["codec"], codes),
        }

    with jax.default_matmul_precision("highest"):
        ours = run(loaded.weights)
    for name, expected in published.tensors(theirs, prompts, x, t, image, codes).items():
        most = np.abs(expected).max()
        assert 0.01 < most < 1e4, name
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-4 * most, err_msg=name)


def test_every_way_of_saving_reads_the_same(folder, tmp_path):
    path, theirs = folder("sd15")
    weights = _flat(path)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*"))) > 2
    assert _flat(tmp_path / "shards").keys() == weights.keys()
    for name, leaf in _flat(tmp_path / "shards").items():
        np.testing.assert_array_equal(leaf, weights[name], err_msg=name)
        assert leaf.ndim == 0 or not leaf.flags.owndata, f"{name} was copied"
    old = shutil.copytree(path, tmp_path / "old")
    state = load_file(old / "vae" / "diffusion_pytorch_model.safetensors")
    # Pickles beside them are another form of the same weights, which nobody asked for.
    index = json.dumps({"weight_map": {"conv_in.weight": "diffusion_pytorch_model-1.bin"}})
    (old / "unet" / "diffusion_pytorch_model.bin.index.json").write_text(index)
    (old / "unet" / "diffusion_pytorch_model.safetensors").rename(
        old / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    save_file({_old(name): _as_old(name, leaf) for name, leaf in state.items()},
              old / "vae" / "diffusion_pytorch_model.safetensors")  # fmt: skip
    for name, leaf in _flat(old).items():
        np.testing.assert_array_equal(leaf, weights[name], err_msg=name)


def test_half_the_precision_becomes_float32_where_it_is_placed(folder, tmp_path, monkeypatch):
    """Of arrays that are split, in each device's part of them."""
    path, theirs = folder("sd15")
    half = shutil.copytree(path, tmp_path / "half")
    for file in half.rglob("*.safetensors"):
        state = {name: leaf.astype(np.float16) for name, leaf in load_file(file).items()}
        save_file(state, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    weights = _flat(half)
    assert {leaf.dtype.name for leaf in weights.values()} == {"float16", "float32"}
    mesh = meshes.make(Mesh(data=1, fsdp=-1), 8)
    tree = pipelines.load(half)[2]
    monkeypatch.setattr(meshes, "SHARD_FROM", 256)
    placed = meshes.put(tree, meshes.over_parameters(mesh, tree))
    whole = 0
    for name, leaf in flatten_dict(placed, sep="/").items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, weights[name].astype(np.float32), err_msg=name)
        parts = {shard.data.size for shard in leaf.addressable_shards}
        divides = any(n % mesh.size == 0 for n in leaf.shape)
        assert parts == {leaf.size // (8 if leaf.size >= 256 and divides else 1)}, name
        whole += parts == {leaf.size}
    assert len(weights) - whole > 100
    del theirs


# How much more memory, in MiB, a process has had at most once it has placed a file's tensors.
PLACING = """
import re, sys
from pathlib import Path
import jax, numpy as np
from jaxgen.config import Mesh
from jaxgen.runtime import mesh as meshes
from jaxgen.weights import mapped

def most():
    # Not ru_maxrss, which begins at what the parent has had.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024

where = meshes.replicated(meshes.make(Mesh(data=1), 1, jax.devices()[:1]))
jax.block_until_ready(meshes.put({"first": np.zeros(8, np.float16)}, where))
before = most()
placed = jax.block_until_ready(meshes.put(mapped.network(Path(sys.argv[1])), where))
print(most() - before)
"""


def test_the_host_holds_the_model_and_one_tensor_at_most(tmp_path):
    """Beside the file's pages, which are the system's to take back but count here too."""
    count, one = 4, 64
    half = np.full((one // 4, 2**20), 0.5, np.float16)
    save_file({f"tensor{n}": half for n in range(count)}, tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PLACING, str(tmp_path)], text=True, capture_output=True, check=True
    )
    file, model = count * one / 2, count * one
    assert file + model <= float(done.stdout) < file + model + 1.5 * one


def test_half_the_precision_is_not_for_the_codec(folder):
    tree = pipelines.load(folder("sd15")[0])[2]
    mesh = meshes.make(Mesh(data=1), 1, jax.devices()[:1])
    for half, kind in ((True, "bfloat16"), (False, "float32")):
        found = sample.placed(tree, mesh, half)
        kinds = {
            name: {leaf.dtype.name for leaf in jax.tree.leaves(part) if leaf.ndim > 1}
            for name, part in found.items()
        }
        assert kinds == {"text": {kind}, "denoiser": {kind}, "codec": {"float32"}}


@pytest.mark.parametrize("method", ["add", "ladd"])
@pytest.mark.parametrize(
    ("name", "unet", "texts"),
    [
        ("sd15", SD15_UNET, [CLIP_L]),
        ("sd21", SD21_UNET, [OPENCLIP_H]),
        ("sdxl", SDXL_UNET, [dataclasses.replace(CLIP_L, penultimate=True), OPENCLIP_BIGG]),
    ],
)
def test_each_config_accepts_the_weights_that_it_is_for(method, name, unet, texts):
    """Whatever their size in pixels and what the config computes in."""
    config = configs.load(f"{method}_{name}")
    config.check()
    model = Denoiser(
        text=texts[0],
        text_2=texts[1] if len(texts) > 1 else None,
        time_ids=(1024, 1024, 0, 0, 1024, 1024) if len(texts) > 1 else (),
        zero_empty=len(texts) > 1,
        unet=unet,
        schedule=Schedule(kind="scaled_linear"),
        prediction="epsilon",
    )
    teacher = methods.published(
        pipelines.Pipeline(model, SD_AUTOENCODER, 0.18215, 1024, False), Path("teacher")
    )
    config.accept("teacher", teacher, "teacher")
    used = config.fitted(teacher)
    assert (used.data.size, used.model.unet.dtype) == (512, "bfloat16")
    other = dataclasses.replace(model, prediction="v")
    teacher = dataclasses.replace(teacher, model=other)
    with pytest.raises(UserError, match=r"model.prediction is epsilon, that of the teacher T is v"):
        config.accept("teacher", teacher, "T")


@pytest.mark.parametrize("name", ["latent_diffusion", "add_latent"])
@pytest.mark.parametrize("wider", ["", "_64"])
def test_what_our_latent_configs_train_goes_out(name, wider):
    config = configs.load(name + wider)
    config.check()
    outward.check(config.pipeline({"codec": {"scale": 1.0}}))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("half", [True, False])
def test_of_a_repository_what_is_needed_is_fetched(monkeypatch, half):
    """Full precision where it is there; neither pickles nor what nobody draws with."""
    network = ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    network += ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    network += [] if half else ["unet/diffusion_pytorch_model.safetensors"]
    others = ["model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    left = [
        "unet/diffusion_pytorch_model.bin.index.json",
        "v1-5.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
    ]
    asked = {}
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: [*network, *others, *left])
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.update({name: sorted(allow_patterns)}) or "/cache",
    )
    assert hub.located("hf:owner/name") == Path("/cache")
    wanted = network if half else [network[0], network[3]]
    assert asked == {"owner/name": sorted(wanted + others)}


def test_a_repository_out_of_reach_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"hf:a/b cannot be fetched \(Name or .*known\); check"):
        stages.run_folder("hf:a/b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v1-5.ckpt", r"v1-5.ckpt is one file, a pickle, which may run any program .* trust it"),
        ("sd.safetensors", r"sd.safetensors is one file; weights are read from a folder of diff"),
    ],
)
def test_one_file_of_weights_is_refused_with_the_way_out(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=message) as refused:
        stages.run_folder(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_a_bare_name_of_a_repository_is_known_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is no run folder.*; if .* give hf:stabilityai/sd-turbo$"):
        stages.read(stages.run_folder("stabilityai/sd-turbo"))
    with pytest.raises(UserError, match=r"sd-turbo is no folder .*; if .* give hf:stabilityai/sd-"):
        pipelines.load("stabilityai/sd-turbo")
    with pytest.raises(UserError, match=r"^nowhere is no folder of published weights$"):
        pipelines.load("nowhere")
    Path("runs").mkdir()
    with pytest.raises(UserError, match=r"published weights; train one, .* shipped:classifier$"):
        stages.read(stages.run_folder("runs/add"))


@pytest.mark.parametrize("family", ["sdxl", "sd21"])
def test_what_went_out_comes_in_again(folder, tmp_path, family):
    """Both text encoders, all weights, the tokenizer's padding; and diffusers draws it the same."""
    path, _ = folder(family)
    pipeline, tokenizer, weights = pipelines.load(path)
    outward.save(tmp_path / "again", pipeline, tokenizer, weights, "float32")
    again, words_again, back = pipelines.load(tmp_path / "again")
    assert again == pipeline
    assert words_again.get_vocab() == tokenizer.get_vocab()
    for name, leaf in flatten_dict(back, sep="/").items():
        np.testing.assert_array_equal(leaf, flatten_dict(weights, sep="/")[name], err_msg=name)
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "again")
    theirs.set_progress_bar_config(disable=True)
    ours, expected = published.both(path, theirs, PROMPTS, ANCESTRAL)
    np.testing.assert_allclose(ours, expected, atol=1.01 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "dit"}, "no --model.network dit"),
        ({"schedule": Schedule(kind="flow"), "prediction": "x0"}, "no --model.schedule.kind flow"),
        ({"text": dataclasses.replace(CLIP_L, masked=True)}, "no --model.text.masked True"),
    ],
)
def test_what_diffusers_has_not_does_not_go_out(tmp_path, changes, message):
    model = Denoiser(text=CLIP_L, unet=SD15_UNET, schedule=Schedule(kind="scaled_linear"))
    model = dataclasses.replace(model, **{"prediction": "epsilon", **changes})
    pipeline = pipelines.Pipeline(model, SD_AUTOENCODER, 0.2, 512, False)
    with pytest.raises(UserError, match=message):
        outward.check(pipeline)


def _edited(path: Path, name: str, **changes):
    file = path / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _truncated(path: Path):
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _long_header(path: Path):
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes((10**9).to_bytes(8, "little") + file.read_bytes()[8:])


def _pickled(path: Path):
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def _placed_in(name: Any):
    def harm(path: Path):
        (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))

    return harm


def _pickled_in_shards(path: Path):
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model-1.bin"))
    index = file.with_suffix(".bin.index.json")
    index.write_text(
        json.dumps({"weight_map": {"conv_in.weight": "diffusion_pytorch_model-1.bin"}})
    )


def _of_type(kind: type):
    def harm(path: Path):
        file = path / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {"conv_in.bias": np.zeros(16, kind)}, file)

    return harm


def _without_clip_sample(path: Path):
    file = path / "scheduler" / "scheduler_config.json"
    values = json.loads(file.read_text())
    del values["clip_sample"]
    file.write_text(json.dumps(values))


def _without(path: Path):
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "conv_out.bias"}, file)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: shutil.rmtree(p / "vae"), r"has no vae: copy the whole StableDiffusionPipeline"),
        (
            lambda p: _edited(p, "model_index.json", unet=["diffusers", "UNet3D"]),
            r"unet is a UNet3D; jaxgen has UNet2DConditionModel",
        ),
        (
            lambda p: _edited(p, "model_index.json", _class_name="FluxPipeline"),
            r"is of a FluxPipeline; jaxgen opens StableDiffusionPipeline and",
        ),
        (
            lambda p: _edited(p, "model_index.json", _class_name=["StableDiffusionPipeline"]),
            r"is of a \['StableDiffusionPipeline'\]; jaxgen opens StableDiffusionPipeline and",
        ),
        (
            lambda p: _edited(p, "scheduler/scheduler_config.json", _class_name=["DDIMScheduler"]),
            r"scheduler: _class_name \['DDIMScheduler'\] is none of DDIMScheduler",
        ),
        (
            lambda p: _edited(p, "unet/config.json", in_channels=9),
            r"unet: out_channels is 4; jaxgen's network has 9",
        ),
        (
            lambda p: _edited(p, "unet/config.json", class_embed_type="timestep"),
            r"unet: class_embed_type is timestep; jaxgen knows nothing of it",
        ),
        (
            lambda p: _edited(p, "unet/config.json", flip_sin_to_cos=False),
            r"unet: flip_sin_to_cos is False; jaxgen's has True",
        ),
        (
            lambda p: _edited(p, "unet/config.json", cross_attention_dim=24),
            r"networks do not fit each other: .*width 16 .*24 differ",
        ),
        (
            lambda p: _edited(p, "unet/config.json", layers_per_block=2),
            r"unet: weights do not fit this network: \d+ tensors missing, first down_blocks",
        ),
        (
            lambda p: _edited(p, "vae/config.json", block_out_channels=[8, 8]),
            r"vae: weights do not fit this network: .*\(",
        ),
        (
            lambda p: _edited(p, "scheduler/scheduler_config.json", timestep_type="continuous"),
            r"scheduler: timestep_type is continuous, which changes the noise levels",
        ),
        (
            lambda p: _edited(p, "unet/config.json", block_out_channels=None),
            r"config.json there has a value of no use",
        ),
        (
            lambda p: _edited(p, "scheduler/scheduler_config.json", beta_schedule="sigmoid"),
            r"scheduler: beta_schedule 'sigmoid' is none of scaled_linear",
        ),
        (lambda p: (p / "unet/config.json").unlink(), r"config.json is missing; copy the whole"),
        (lambda p: (p / "unet/config.json").write_text("{"), r"config.json cannot be read"),
        (
            lambda p: _edited(p, "scheduler/scheduler_config.json", clip_sample=True),
            r"scheduler: clip_sample is True",
        ),
        (_without_clip_sample, r"scheduler: clip_sample is True, also where it is absent"),
        (lambda p: _edited(p, "unet/config.json", sample_size=-8), r"unet: sample_size is -8"),
        (lambda p: _edited(p, "unet/config.json", sample_size=0), r"unet: sample_size is 0;"),
        (lambda p: _edited(p, "vae/config.json", scaling_factor=0), r"vae: scaling_factor is 0"),
        (
            lambda p: _edited(p, "vae/config.json", scaling_factor=float("nan")),
            r"vae: scaling_factor is nan",
        ),
        (_truncated, r"diffusion_pytorch_model.safetensors cannot be read"),
        (_long_header, r"diffusion_pytorch_model.safetensors cannot be read"),
        (_pickled, r"a pickle, which may run any program .* take the .safetensors"),
        (
            _placed_in("../vae/x.safetensors"),
            r"names '../vae/x.safetensors', which is no file beside it: refused",
        ),
        (_placed_in(""), r"index.json names no file for conv_in.weight, but ''; copy it again"),
        (_placed_in(None), r"index.json names no file for conv_in.weight, but None; copy it again"),
        (_pickled_in_shards, r"holds diffusion_pytorch_model-1.bin, a pickle, which may run"),
        (_of_type(np.uint8), r"conv_in.bias is of type U8, which is not read"),
        (_of_type(np.int32), r"unet: .*: conv_in.bias is of int32, and no float"),
        (_without, r"1 tensors missing, first conv_out.bias \(4,\)"),
    ],
)
def test_what_cannot_be_read_is_named(folder, tmp_path, harm, message):
    path = shutil.copytree(folder("sd15")[0], tmp_path / "copy")
    harm(path)
    with pytest.raises(UserError, match=message) as refused:
        pipelines.load(path)
    assert "\n" not in str(refused.value)


def _flat(path: Path) -> dict[str, np.ndarray]:
    return flatten_dict(pipelines.load(path)[2], sep="/")


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old(name: str) -> str:
    for new, old in OLD.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def _as_old(name: str, leaf: np.ndarray) -> np.ndarray:
    return leaf[:, :, None, None] if "attentions" in name and leaf.ndim == 2 else leaf
