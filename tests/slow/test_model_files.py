"""The files of users through the commands: drawn right, or one line with its remedy and exit 2."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from srrl.models.loading import load_pipeline
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from tests.ldm import save_single_file
from tests.models import POINTER, edit, linked, same_weights, set_scheduler, write
from tests.slow.commands import run

pytestmark = pytest.mark.slow
PRESET = "config/stage_process.py:tiny"
CONFIG = f"--config.pretrained.single_file_config={TINY_SD}"


def command(script, *arguments):
    return run(sys.executable, f"scripts/{script}.py", *arguments, check=None)


def sampled(out, *arguments):
    prompt = ["--prompt", "a blue circle above a red square", "--num-steps", 4, "--seeds", 0]
    done = command("sample", "--config", PRESET, *prompt, "--no-score", "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(out / "image_000.png"))


def one_line(done, *said):
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for text in said:
        assert text in lines[0]


def refused(tmp_path, said, *arguments):
    """By sampling and by training, and nothing is drawn."""
    prompt = ["--prompt", "a blue circle above a red square", "--no-score", "--out", tmp_path / "o"]
    one_line(command("sample", "--config", PRESET, *prompt, *arguments), *said)
    folder = [f"--config.output_dir={tmp_path}", "--config.run_name=run"]
    one_line(command("train", f"--config={PRESET}", *folder, *arguments), *said)
    assert not list(tmp_path.rglob("image_*.png")) and not list(tmp_path.rglob("metrics.jsonl"))


def of(model):
    return f"--config.pretrained.model={model}"


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return sampled(tmp_path_factory.mktemp("right"))


def test_a_single_file_draws_what_its_folder_draws(tmp_path, right):
    file = tmp_path / "MODEL.SAFETENSORS"
    save_single_file(load_pipeline(str(TINY_SD)), file)
    assert (sampled(tmp_path / "out", of(file), CONFIG) == right).all()
    state = {k: v for k, v in load_file(file).items() if not k.startswith("first_stage_model")}
    save_file(state, tmp_path / "no_vae.safetensors")
    for vae in ("srrl/shapes/tiny_sd/vae", "srrl/shapes/tiny_sd"):
        given = of(tmp_path / "no_vae.safetensors"), CONFIG, f"--config.pretrained.vae={vae}"
        assert (sampled(tmp_path / "out", *given) == right).all()
    said = "no_vae.safetensors", "has no VAE", "--config.pretrained.vae=VAE"
    refused(tmp_path / "x", said, of(tmp_path / "no_vae.safetensors"), CONFIG)


def test_markers_draw_what_a_scheduler_set_by_hand_draws(tmp_path, right):
    file = tmp_path / "model.safetensors"
    save_single_file(load_pipeline(str(TINY_SD)), file)
    save_file(load_file(file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    by_hand = linked(tmp_path / "by_hand")
    values = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    edit(by_hand / "scheduler/scheduler_config.json", **values)
    ours = sampled(tmp_path / "ours", of(file), CONFIG)
    assert (ours == sampled(tmp_path / "theirs", of(by_hand))).all()
    assert (ours != right).any()


def test_an_inpainting_model_is_named(tmp_path):
    model = linked(tmp_path / "model")
    edit(model / "unet/config.json", in_channels=9)
    refused(tmp_path / "x", (str(model), "inpainting UNet of 9 input channels"), of(model))


def test_an_edm_model_is_named(tmp_path):
    model = linked(tmp_path / "model", TINY_SDXL)
    edm = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}
    set_scheduler(model, {"_class_name": "EDMEulerScheduler", **edm})
    said = str(model), "EDMEulerScheduler", "EDM preconditioning", "choose another"
    refused(tmp_path / "x", said, of(model))
    plan = command("plan", f"--config={PRESET}", "--card", "cpu", of(model))
    one_line(plan, *said)


def test_a_pointer_is_named(tmp_path):
    write(tmp_path / "model.safetensors", POINTER)
    refused(
        tmp_path / "x", ("model.safetensors", "git lfs pull"), of(tmp_path / "model.safetensors")
    )


def test_only_a_variant_and_its_remedy(tmp_path, right):
    model = linked(tmp_path / "model")
    for file in model.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    remedy = "--config.pretrained.variant=fp16"
    refused(tmp_path / "x", (str(model), remedy), of(model))
    assert (sampled(tmp_path / "out", of(model), remedy) == right).all()


def test_only_bin_and_its_remedy(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TINY_SD, model)
    for file, name in (
        ("unet/diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("vae/diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("text_encoder/model", "pytorch_model.bin"),
    ):
        whole = model / f"{file}.safetensors"
        torch.save(load_file(whole), whole.parent / name)
        whole.unlink()
    prompt = ["--prompt", "a blue circle", "--no-score", "--out", tmp_path / "x"]
    done = command("sample", "--config", PRESET, *prompt, of(model))
    one_line(done, str(model), "only .bin weights")
    convert, to = done.stderr.split("`")[1], done.stderr.split("and give ")[1].strip()
    subprocess.run(
        convert.replace("python ", f"{sys.executable} ", 1), shell=True, check=True, cwd=tmp_path
    )
    ours, theirs = load_pipeline(str(tmp_path / to)), load_pipeline(str(TINY_SD))
    for part in ("unet", "vae", "text_encoder"):
        assert same_weights(getattr(ours, part), getattr(theirs, part))


def test_quantised_files_are_named_by_their_suffix(tmp_path):
    for name, said in (("model-Q4_K_M.gguf", "GGUF"), ("model.CKPT", "may run code")):
        write(tmp_path / name, b"GGUF")
        refused(tmp_path / "x", (name, said), of(tmp_path / name))


def test_sample_and_score_take_the_configs_overrides_and_no_others(tmp_path):
    prompt = ["--prompt", "a blue circle above a red square"]
    sample = ["sample", "--config", PRESET, *prompt, "--out", tmp_path / "out", "--no-score"]
    one_line(command(*sample, "--promts", "x"), "unknown argument '--promts'", "sample.py --help")
    one_line(command(*sample, "--config.sample.num_stepz=4"), "num_stepz", "num_steps")
    done = command(*sample, "--config.sample.guidance_scale=2.5", "--seeds", 0)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out/image_000.png").info["guidance_scale"] == "2.5"
    image = tmp_path / "out/image_000.png"
    one_line(command("score", image, "--promt=x"), "unknown argument", "score.py --help")
    one_line(command("score", image, "--config.reward.x=1"), "unknown config key")
    scores = command("score", image, '--config.reward.models={"judge": 1.0}')
    assert scores.returncode == 0 and "judge" in scores.stdout
    given = ["score", image, "--checkpoint", tmp_path, "--config.reward.dtype=fp32"]
    one_line(command(*given), "a run has its own config")
