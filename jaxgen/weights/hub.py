"""Published weights by their name at Hugging Face: hf:OWNER/NAME, kept in that library's cache."""

from pathlib import Path

from jaxgen import storage
from jaxgen.errors import UserError

PREFIX = "hf:"
_WANTED = ["*.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
_UNWANTED = ["*.fp16.*", "*non_ema*", "*.bin", "*safety_checker*", "*onnx*", "*openvino*"]


def located(argument: str) -> Path:
    """The folder that a path, gs://… or hf:OWNER/NAME means; the last is fetched if need be.

    Raises UserError where it cannot be fetched.
    """
    if not argument.startswith(PREFIX):
        return storage.folder(argument)
    name = argument.removeprefix(PREFIX)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{argument} needs huggingface_hub: pip install huggingface_hub, or give a folder"
        ) from None
    try:
        found = snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except Exception as error:  # its own classes, and the network's
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{argument} cannot be fetched ({first[0].rstrip('.')}); check the name and the "
            "network, or give the folder of a copy"
        ) from None
    return Path(found)
