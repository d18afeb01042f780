"""Models from folders, variants and single files; schedulers; what is refused, in one line."""

import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator

from rewards import load_rewards
from srrl.config import load_config
from srrl.errors import UserError
from srrl.models.loading import load_pipeline, set_arithmetic
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.run.tracking import Tracker
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from srrl.trainer import Trainer
from tests.conftest import PRESET, small_run
from tests.ldm import save_single_file

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "DDIM": {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    },
    "PNDM": {
        "_class_name": "PNDMScheduler",
        **BETAS,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    },
    "Euler": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "interpolation_type": "linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "use_karras_sigmas": False,
        "clip_sample": False,
        "set_alpha_to_one": False,
    },
    "v-prediction": {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "prediction_type": "v_prediction",
    },
    "zero-terminal-SNR, leading": {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
}


def copy_of(folder, to, scheduler=None):
    shutil.copytree(folder, to)
    if scheduler:
        (to / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        index = json.loads((to / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        (to / "model_index.json").write_text(json.dumps(index))
    return to


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder"),
    [*((name, TINY_SD) for name in SCHEDULERS), ("Euler", TINY_SDXL), ("v-prediction", TINY_SDXL)],
)
def test_models_of_every_scheduler_train_with_a_first_ratio_of_one(name, folder, tmp_path):
    model = copy_of(folder, tmp_path / "model", SCHEDULERS[name])
    config = load_config(
        [
            PRESET,
            *small_run(tmp_path, 1),
            f"--config.pretrained.model={model}",
            "--config.reflect.rounds=2",
            "--config.eval.every=0",
            "--config.train.num_inner_epochs=1",
        ]
    )
    config.reward.models = {"shapes": 1.0}
    policy = Policy.from_config(config, device="cpu")
    assert type(policy.pipe.scheduler).__name__ == SCHEDULERS[name]["_class_name"]
    make_trainable(policy.network, config)
    accelerator = Accelerator()
    tracker = Tracker(tmp_path / "run", accelerator)
    Trainer(config, policy, load_rewards(config.reward.models), accelerator, tracker).run()
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["ratio/first_max_dev"] <= 1e-5
    for parameter in policy.trainable():
        assert torch.isfinite(parameter).all()


def test_zero_terminal_snr_from_the_last_timestep_is_refused(tmp_path):
    scheduler = {**SCHEDULERS["zero-terminal-SNR, leading"], "timestep_spacing": "trailing"}
    model = copy_of(TINY_SD, tmp_path / "model", scheduler)
    with pytest.raises(UserError, match="zero-terminal-SNR"):
        Policy.load(str(model), num_steps=10, eta=1.0, micro_batch=4)


def test_a_single_file_is_the_model_it_was_made_from(tmp_path):
    whole = load_pipeline(str(TINY_SD))
    save_single_file(whole, tmp_path / "tiny.safetensors")
    single = load_pipeline(str(tmp_path / "tiny.safetensors"), single_file_config=str(TINY_SD))
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(single, name).state_dict(), getattr(whole, name).state_dict()
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), name
    assert single.vae.config.scaling_factor == whole.vae.config.scaling_factor


@pytest.mark.slow
def test_variants_and_another_vae(tmp_path):
    pipe = load_pipeline(str(TINY_SDXL), dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    again = load_pipeline(str(tmp_path / "model"), variant="fp16", dtype=torch.float16)
    assert again.unet.dtype == torch.float16
    pipe.vae.register_to_config(scaling_factor=0.5)
    pipe.vae.save_pretrained(tmp_path / "vae")
    assert load_pipeline(str(TINY_SDXL), vae=str(tmp_path / "vae")).vae.config.scaling_factor == 0.5


def test_what_cannot_be_loaded_is_one_clear_line(tmp_path):
    other = copy_of(TINY_SD, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    torn = copy_of(TINY_SD, tmp_path / "torn")
    (torn / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor")
    (tmp_path / "file.safetensors").write_bytes(b"nor this")
    cases = [
        ({"model": str(other)}, "is a FluxPipeline"),
        ({"model": str(torn)}, "incomplete or damaged"),
        ({"model": str(tmp_path / "file.safetensors")}, "incomplete or damaged"),
        ({"model": "nobody/no-such-model"}, "hf download nobody/no-such-model"),
        ({"model": str(TINY_SD), "vae": "nobody/no-vae"}, "pretrained.vae='nobody/no-vae'"),
    ]
    for arguments, said in cases:
        with pytest.raises(UserError, match=said) as caught:
            load_pipeline(**arguments)
        assert "\n" not in str(caught.value)


def test_how_a_gpu_computes_is_as_the_config_says_and_a_cpu_is_left_alone():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        for tf32, deterministic in ((True, False), (False, True), (True, True)):
            set_arithmetic(tf32, deterministic, "cuda:1")
            set_arithmetic(not tf32, not deterministic, "cpu")
            assert matmul.allow_tf32 is tf32 and cudnn.allow_tf32 is tf32
            assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
