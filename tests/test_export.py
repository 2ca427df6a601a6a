"""What an export tells its user."""

import dataclasses
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from jaxgen import config as configs
from jaxgen.exporting import forms
from jaxgen.stages import Loaded
from jaxgen.weights import outward


@pytest.mark.parametrize(("spacing", "warned"), [("turbo", True), ("trailing", False)])
def test_a_spacing_that_the_folder_cannot_say_is_told(
    spacing: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own is trailing, whatever the student was trained at."""
    monkeypatch.setattr(outward, "save", lambda *_: None)
    config = dataclasses.replace(configs.load("add_sd21"), spacing=spacing)
    weights = {"codec": {"scale": 1.0}}
    loaded = Loaded(config, Tokenizer(models.BPE()), weights, 1, tmp_path, ())
    notes = forms.diffusers(loaded, tmp_path, "float32")
    words = "jaxgen draws it with --spacing=turbo, the folder says trailing: at more than one step "
    assert any(note.startswith(words) for note in notes) == warned
    assert "num_inference_steps=1, guidance_scale=1.0" in notes[-1]
    model = config.pipeline(weights).model
    assert outward.scheduler(model, True)["timestep_spacing"] == "trailing"
