"""LoRAs in older versions of diffusers, installed aside: the same effect in each."""

import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

from srrl.models.lora_uses import export_kohya
from srrl.models.weights import add_lora, save_weights, trained_weights
from tests.conftest import LORA, MODELS, load_policy, randomise_lora
from tests.slow.commands import run
from tests.slow.load_lora import inputs

pytestmark = pytest.mark.slow
PINNED = version("diffusers")
# What the older versions can be imported beside.
THEN = ("transformers==4.51.3", "tokenizers==0.21.1", "huggingface-hub==0.30.2", "peft==0.17.1")


def install(folder, *packages: str) -> str:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *packages], check=True)
    return str(folder)


@pytest.fixture(scope="module")
def then(tmp_path_factory) -> str:
    return install(tmp_path_factory.mktemp("then"), *THEN)


@pytest.mark.parametrize("diffusers", ["0.31.0", "0.35.2", PINNED])
def test_loras_of_any_alpha_have_their_whole_effect(diffusers, then, tmp_path):
    path = "."
    if diffusers != PINNED:
        path = f"{install(tmp_path / 'diffusers', f'diffusers=={diffusers}')}:{then}:."
    for model in MODELS:
        expected = {}
        for alpha in (4, 16):
            policy, settings = load_policy(model), LORA.copy_and_resolve_references()
            settings.alpha = alpha
            unet = policy.pipe.unet
            with torch.no_grad():
                without = unet(**inputs(unet)).sample
                add_lora(policy.network, settings, seed=0)
                randomise_lora(policy)
                ours = unet(**inputs(unet)).sample
            assert (ours - without).abs().max() > 0.01
            folder = tmp_path / f"{model}_{alpha}"
            save_weights(policy.network, folder, trained_weights(policy.network))
            export_kohya(policy.pipe, folder / "kohya.safetensors")
            expected |= {file: ours for file in folder.glob("*.safetensors")}
        command = [sys.executable, "tests/slow/load_lora.py", MODELS[model], *expected]
        assert run(*command, PYTHONPATH=path).stdout.strip() == diffusers
        assert len(expected) == 4
        for file, ours in expected.items():
            theirs = torch.from_numpy(np.load(file.with_suffix(".npy")))
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
