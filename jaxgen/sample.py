"""python -m jaxgen.sample --run=runs/add --prompt "un cœur rouge" --out=heart.png: draws."""

import dataclasses
import functools
import inspect
import itertools
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxgen import config as configs
from jaxgen import methods, stages
from jaxgen.data.picture import open_picture
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.runtime import compiled, pictures, reconstructions
from jaxgen.runtime import mesh as meshes
from jaxgen.text import tokenizer as words

LINE = 7  # pictures on the line between two codes, both ends among them
MOST = 10_000  # images, as their files are numbered
DEFAULT, STRENGTH = "runs/add", 0.6
NOT_OF_CODECS = ("steps", "guidance", "solver", "spacing")
NOT_OF_CODECS += ("size", "dtype", "negative_prompt", "start", "count", "eta")


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = ""
    """Folder of a run, finished or not, or shipped:NAME: weights that come with jaxgen; runs/add
    where neither this nor --weights is given."""
    weights: str = ""
    """In the run's place: a folder of published Stable Diffusion weights (in diffusers' layout), or
    hf:OWNER/NAME."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to draw, in English or French; give it several times for several images."""
    count: int = 1
    """Images of each prompt, all drawn at once: those of the first prompt, then the next one's."""
    image: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """For an autoencoder in the prompt's place: a picture to reconstruct; of several, the line
    from each one's code to the next one's is drawn too."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    start: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A picture to start from, one for each prompt or one for all; see --strength."""
    strength: float | None = None
    """Share of the noise levels that a picture to start from is led through; .6 by default."""
    out: str = "sample.png"
    """PNG file to write: the image itself, or of several a sheet with captions. Or a folder, there
    already or with a / at its end: each image as a file of its own, 0000.png and so on, in the
    place of any that was there."""
    steps: int | None = None
    """Sampling steps; the method's own by default: 1 for a student, 50 for a teacher."""
    guidance: float | None = None
    """Classifier-free guidance; the method's own by default (a student needs none: 1)."""
    solver: str | None = None
    """ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m or renoise."""
    spacing: str | None = None
    """trailing, leading, linspace, karras or turbo; the method's own by default."""
    eta: float | None = None
    """Share of fresh noise in each step of ddim, from 0, the default, to 1."""
    size: int | None = None
    """Side of the images in pixels; that of training by default."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the networks compute in; as their config says by default."""
    seed: int = 0
    """Seed of the noise; of one seed image n, as the files are numbered, always has the same."""

    def check(self) -> None:
        """Raises UserError for options that are wrong whatever the run is."""
        if not (self.prompt or self.image):
            raise UserError('--prompt is missing; say what to draw: --prompt "un cœur rouge"')
        if self.run and self.weights:
            raise UserError("--run and --weights both say what draws; give one of them")
        if self.count < 1:
            raise UserError(f"--count is {self.count}; give 1 or more images of each prompt")
        if self.count * len(self.prompt) > MOST:
            raise UserError(
                f"--count {self.count} of {len(self.prompt)} prompts is more than {MOST} images, "
                "all drawn at once; give fewer, and another --seed for others"
            )
        if self.size is not None and self.size < 1:
            raise UserError(f"--size is {self.size}; give pixels above 0")
        if self.strength is not None and not self.start:
            raise UserError("--strength is for a picture to start from; name it with --start")
        if len(self.start) > 1 and len(self.start) != len(self.prompt):
            raise UserError(
                f"--start names {len(self.start)} pictures for {len(self.prompt)} prompts; name "
                "one, or one for each"
            )
        if self.prompt and self.image:
            raise UserError("--prompt draws and --image reconstructs; give one of them")
        if not (self.to_folder or Path(self.out).suffix.lower() == ".png"):
            raise UserError(f"--out {self.out} is no .png file name, nor a folder with a / behind")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; give 0 to {2**32 - 1}")

    @property
    def to_folder(self) -> bool:
        """Whether each image is to be a file of its own."""
        return self.out.endswith("/") or (self.out != "" and Path(self.out).is_dir())

    @property
    def captions(self) -> tuple[str, ...]:
        """What each image is to show."""
        return tuple(prompt for prompt in self.prompt for _ in range(self.count))


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], "python -m jaxgen.sample")
        out = Path(options.out)
        _writable(out, options.to_folder)
        folder = stages.run_folder(options.weights or options.run or DEFAULT)
        meshes.prepare(len(options.captions or options.image), stages.compiled_beside(folder))
        loaded = stages.read_unfinished(folder, _say)
        method = methods.of(loaded.config)
        if hasattr(method, "reconstruct"):
            _reconstruct(loaded, method, options, out)
            return
        if options.image:
            raise UserError(
                f"{folder} is a {methods.name(loaded.config)} run, which draws from a "
                "--prompt; --image is for an autoencoder (vae)"
            )
        if not hasattr(method, "sample"):
            raise UserError(f"{folder} is a {methods.name(loaded.config)} run: it draws nothing")
        loaded = _changed(loaded, options)
        sampler = _sampler(method.samplers(loaded.config), options)
        method.check_sampler(loaded.config, sampler)
        seen = method.seen_words(loaded.weights)
        if options.negative_prompt and sampler.guidance == 1:
            raise UserError("--negative-prompt needs --guidance above 1, by which it leads away")
        if sampler.guidance == 0:
            _say("guidance 0 leaves the prompt out; for none, which diffusers calls 0, give 1")
        negative = (options.negative_prompt,) if options.negative_prompt else ()
        for prompt in options.prompt + negative:
            for note in _notes(loaded, prompt, seen):
                _say(note)
        images, took = _drawn(loaded, method, sampler, options)
        if options.to_folder:
            saved = _each(images, out)
        else:
            pictures.save(_sheet(images, options.captions), out)
            saved = str(out)
        print(
            f"{saved}: {len(images)} image(s) of {images.shape[2]} x {images.shape[1]} pixels, "
            f"{sampler.steps} step(s), {took}"
        )


def _reconstruct(loaded: stages.Loaded, method, options: Options, out: Path) -> None:
    """A sheet of pictures as they are and as they come back, and the lines between their codes."""
    if not options.image:
        raise UserError(
            f"{loaded.folder} is a {methods.name(loaded.config)} run: it reconstructs pictures; "
            "name some with --image"
        )
    for name in NOT_OF_CODECS:
        if getattr(options, name) != getattr(Options, name):
            option = name.replace("_", "-")
            raise UserError(f"--{option} has no meaning for an autoencoder; leave it out")
    if options.to_folder:
        raise UserError(f"--out {options.out} is a folder, and this is one sheet: name a .png file")
    images = np.stack([open_picture(file, loaded.config.data.size) for file in options.image])
    files = [Path(file).name for file in options.image]
    with stages.fitting(loaded):
        back = np.asarray(
            jax.jit(functools.partial(method.reconstruct, loaded.config))(loaded.weights, images)
        )
    scale = max(1, 128 // images.shape[1])
    columns = [("picture", images), ("reconstruction", back)]
    if len(images) > 1:
        following = np.roll(images, -1, axis=0)
        between = jax.jit(functools.partial(method.between, loaded.config), static_argnums=3)
        line = np.asarray(between(loaded.weights, images, following, LINE))
        files = [f"{a} to {b}" for a, b in zip(files, files[1:] + files[:1], strict=True)]
        columns += [("", line[:, n]) for n in range(1, LINE)]
    pictures.save(pictures.grid(columns, files, scale, blocks=1), out)
    psnr = ", ".join(f"{value:.1f}" for value in reconstructions.psnr(images, back))
    print(f"{out}: {len(images)} picture(s) reconstructed, PSNR {psnr} dB")


def _say(line: str) -> None:
    print(f"jaxgen: {line}", file=sys.stderr)


def _notes(loaded: stages.Loaded, prompt: str, seen: Collection[int]) -> list[str]:
    """What the user should know of a prompt, by each of the tokenizers that read it."""
    every = loaded.config.tokenizers(loaded.tokenizer)
    length = loaded.config.caption_length
    found = [words.check_prompt(each, prompt, length, seen) for each in every]
    return list(dict.fromkeys(itertools.chain(*found)))


def _sampler(own: dict[str, Sampler], options: Options) -> Sampler:
    chosen = {
        name: value
        for name in ("steps", "guidance", "solver", "spacing", "eta")
        if (value := getattr(options, name)) is not None
    }
    if options.start:
        chosen["strength"] = STRENGTH if options.strength is None else options.strength
    sampler = dataclasses.replace(next(iter(own.values())), **chosen)
    for name in ("solver", "spacing"):
        field = Sampler.__dataclass_fields__[name]
        legal = getattr(field.type, "__args__", ())
        if legal and getattr(sampler, name) not in legal:
            raise UserError(f"--{name} {getattr(sampler, name)!r} is none of {', '.join(legal)}")
    return sampler


def _changed(loaded: stages.Loaded, options: Options) -> stages.Loaded:
    """The same weights for images of another size, or computed with in another type."""
    config: Any = loaded.config
    if options.size not in (None, config.data.size):
        if not hasattr(config, "resized"):
            raise UserError(
                f"--size {options.size}: {loaded.folder} draws {config.data.size} px only"
            )
        config = config.resized(options.size)
    if options.dtype:
        if not hasattr(config, "computed_in"):
            raise UserError(
                f"--dtype has no meaning for a run of {methods.name(config)}; leave it out"
            )
        config = config.computed_in(options.dtype)
    return dataclasses.replace(loaded, config=config)


def _drawn(
    loaded: stages.Loaded, method: ModuleType, sampler: Sampler, options: Options
) -> tuple[np.ndarray, str]:
    """Images, and in words how long they took."""
    config, prompts = loaded.config, options.captions

    def encoded(texts: Sequence[str]) -> np.ndarray:
        return methods.encode(config, loaded.tokenizer, texts)

    more: dict[str, np.ndarray] = {}
    if options.negative_prompt:
        more["negative"] = encoded([options.negative_prompt] * len(prompts))
    if options.start:
        first = np.stack([open_picture(file, config.data.size) for file in options.start])
        more["start"] = np.repeat(first, len(prompts) // len(first), axis=0)
    if unknown := more.keys() - inspect.signature(method.sample).parameters.keys():
        option = {"negative": "negative-prompt"}.get(min(unknown), min(unknown))
        raise UserError(
            f"--{option} has no meaning for a run of {methods.name(config)}; leave it out"
        )
    mesh = meshes.dividing(len(prompts))
    sample = meshes.known(mesh, functools.partial(method.sample, config))
    program = jax.jit(sample, static_argnums=3)
    weights = placed(loaded.weights, mesh, half=options.dtype == "bfloat16")
    ids, more = jax.device_put((encoded(prompts), more), meshes.over_batch(mesh))
    key = jax.random.key(options.seed)
    begun = time.monotonic()
    with stages.fitting(loaded), compiled.cached() as cached:
        ready = program.lower(weights, key, ids, sampler, **more).compile()
        how = "loading what was compiled before" if cached() else "compiling"
    between = time.monotonic()
    images = np.asarray(ready(weights, key, ids, **more))
    return images, f"{time.monotonic() - between:.2f} s after {between - begun:.1f} s of {how}"


def placed(weights: dict[str, Any], mesh: jax.sharding.Mesh, half: bool) -> dict[str, Any]:
    """The weights on the mesh, whole on every device: they draw what fits into one.

    As bfloat16 where they are to be `half`, but for the codec's: it computes in float32.
    """
    where = meshes.replicated(mesh)
    return {
        name: meshes.put(tree, where, jnp.bfloat16 if half and name != "codec" else None)
        for name, tree in weights.items()
    }


def _sheet(images: np.ndarray, captions: tuple[str, ...]) -> Image.Image:
    if len(images) == 1:
        return Image.fromarray(images[0])
    scale = max(1, 128 // images.shape[1])
    return pictures.grid([("", images)], captions, scale)


def _each(images: np.ndarray, folder: Path) -> str:
    """Saves each image to a file of its own; their names in words."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number:04}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        pictures.save(Image.fromarray(image), file)
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"


def _writable(out: Path, is_folder: bool) -> None:
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is no folder; make it first")
    if is_folder and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name another folder")
    probe = out / ".partial" if out.is_dir() else out.with_name(f".{out.name}.partial")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write --out {out} ({error.strerror})") from None


if __name__ == "__main__":
    main()
