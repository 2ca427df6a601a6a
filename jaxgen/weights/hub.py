"""Published weights by their name at Hugging Face: hf:OWNER/NAME, kept in that library's cache."""

import contextlib
import logging
import re
from pathlib import Path

from jaxgen import storage
from jaxgen.errors import UserError
from jaxgen.weights import mapped

PREFIX = "hf:"
_PARTS = ("unet/", "vae/", "text_encoder", "tokenizer", "scheduler/", "model_index.json")


def located(argument: str) -> Path:
    """The folder that a path, gs://… or hf:OWNER/NAME means; the last is fetched if need be.

    Raises UserError where it cannot be fetched, or is one file.
    """
    if not argument.startswith(PREFIX):
        folder = storage.folder(argument)
        if not storage.is_remote(folder) and folder.is_file():
            raise UserError(_why_no_file(folder))
        return folder
    name = argument.removeprefix(PREFIX)
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError:
        raise UserError(
            f"{argument} needs huggingface_hub: pip install huggingface_hub, or give a folder"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what fails is said once
    try:
        wanted = _wanted(list_repo_files(name))
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # its own classes, and the network's
        with contextlib.suppress(Exception):
            return Path(snapshot_download(name, local_files_only=True))
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{argument} cannot be fetched ({first[0].rstrip('.')}); check the name and the "
            "network, or give the folder of a copy"
        ) from None


def hint(argument: Path) -> str:
    """What to add to the news that there is no such folder: it may be a name at Hugging Face."""
    name = str(argument)
    # Whoever has the first folder means a folder in it.
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not argument.parent.exists():
        return f"; if it is a repository at Hugging Face, give {PREFIX}{name}"
    return ""


def _why_no_file(file: Path) -> str:
    danger = f", {mapped.DANGER}" if file.suffix in mapped.PICKLES else ""
    trusted = " on a machine where you trust it" if danger else ""
    return (
        f"{file} is one file{danger}; weights are read from a folder of diffusers: take that of "
        f"the same model, or make one by StableDiffusionPipeline.from_single_file(…)"
        f".save_pretrained(…){trusted}"
    )


def _wanted(files: list[str]) -> list[str]:
    """Configs, tokenizers and weights; other precisions only where the full one is not there."""
    mine = [file for file in files if file.startswith(_PARTS)]
    weights = [file for file in mine if ".safetensors" in file]
    full = {file.rpartition("/")[0] for file in weights if _is_full(file)}
    weights = [file for file in weights if _is_full(file) or file.rpartition("/")[0] not in full]
    others = [file for file in mine if file.endswith((".json", ".txt")) and ".index" not in file]
    return others + weights


def _is_full(file: str) -> bool:
    return ".fp16" not in file and "non_ema" not in file
