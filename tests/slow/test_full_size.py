"""The full SD v1.4 and SDXL architectures, random weights, through a whole stage on the CPU."""

import gc

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from srrl.config import load_config
from srrl.ddim import make_schedule
from srrl.policy import Policy
from srrl.shapes.pipeline import SD_SCHEDULER, SDXL_SCHEDULER, build_tokenizer
from srrl.tracking import Tracker
from srrl.trainer import Trainer
from srrl.weights import LORA_FILE, load_weights, make_trainable
from tests.conftest import small_run

pytestmark = pytest.mark.slow
SD_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
          "num_hidden_layers": 12, "num_attention_heads": 12}  # fmt: skip
CLIP_BIG_G = {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120,
              "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280,
              "hidden_act": "gelu"}  # fmt: skip
PARAMETERS = {"sd": 859_520_964, "sdxl": 2_567_463_684}  # of the published UNets


def filled(build, dtype: torch.dtype) -> torch.nn.Module:
    """A model with small random weights, made without initialising it in float32 first."""
    with torch.device("meta"):
        model = build()
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.data.uniform_(-0.02, 0.02, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model.eval()


def text_config(tokenizer, size: dict) -> CLIPTextConfig:
    return CLIPTextConfig(
        **size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_sd(dtype: torch.dtype) -> StableDiffusionPipeline:
    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        unet=filled(lambda: UNet2DConditionModel(**SD_UNET), dtype),
        vae=filled(lambda: AutoencoderKL(**VAE, sample_size=512), dtype),
        text_encoder=filled(lambda: CLIPTextModel(text_config(tokenizer, CLIP_L)), dtype),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(**SD_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sdxl(dtype: torch.dtype) -> StableDiffusionXLPipeline:
    one, two = build_tokenizer(), build_tokenizer(pad_token="!")
    return StableDiffusionXLPipeline(
        unet=filled(lambda: UNet2DConditionModel(**SDXL_UNET), dtype),
        vae=filled(lambda: AutoencoderKL(**VAE, sample_size=1024), dtype),
        text_encoder=filled(lambda: CLIPTextModel(text_config(one, CLIP_L)), dtype),
        text_encoder_2=filled(
            lambda: CLIPTextModelWithProjection(text_config(two, CLIP_BIG_G)), dtype
        ),
        tokenizer=one,
        tokenizer_2=two,
        scheduler=EulerDiscreteScheduler.from_config(SDXL_SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


@pytest.mark.parametrize(
    ("model", "build", "dtype"),
    [("sd", build_sd, torch.float32), ("sdxl", build_sdxl, torch.bfloat16)],
)
def test_a_full_size_model_reflects_samples_updates_saves_and_reloads(
    model, build, dtype, tmp_path
):
    preset = {"sd": "sd14", "sdxl": "sdxl"}[model]
    config = load_config([
        f"--config=config/stage_process.py:{preset}+b2diffurl", *small_run(tmp_path, 1),
        '--config.reward.models={"tests.slow.test_full_size:Redness": 1.0}',
        "--config.prompts.train=config/prompts/shapes_unconventional_train.json",
        "--config.prompts.heldout=config/prompts/shapes_unconventional_heldout.json",
        "--config.tracker=none", "--config.sample.num_steps=2", "--config.interval.right=2",
        "--config.interval.steps=1", "--config.reflect.rounds=2", "--config.sample.resolution=64",
        "--config.sample.batch_size=1", "--config.branch.count=2", "--config.eval.num_prompts=1",
        "--config.train.num_inner_epochs=1", "--config.train.gradient_checkpointing=true",
        f"--config.mixed_precision={'no' if dtype == torch.float32 else 'bf16'}",
        "--config.sample.num_batches_per_stage=1", "--config.select.pos_threshold=0",
        "--config.select.neg_threshold=0",
    ])  # fmt: skip
    pipe = build(dtype)
    assert sum(p.numel() for p in pipe.unet.parameters()) == PARAMETERS[model]
    schedule = make_schedule(pipe.scheduler.config, 2, eta=1.0)
    policy = Policy(pipe, schedule, micro_batch=2, decode_batch=1, resolution=64, dtype=dtype)
    assert policy.latent_shape == (4, 8, 8)
    make_trainable(pipe, config)
    assert pipe.unet.is_gradient_checkpointing
    accelerator = Accelerator(cpu=True)
    tracker = Tracker(tmp_path / "run", accelerator)
    trainer = Trainer(config, policy, {"tests.slow.test_full_size:Redness": Redness()},
                      accelerator, tracker)  # fmt: skip
    before = [p.detach().clone() for p in policy.trainable()]
    trainer.run()
    after = list(policy.trainable())
    assert {p.dtype for p in after} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    folder = tmp_path / "run" / "checkpoints" / "stage_0001"
    assert (folder / LORA_FILE).exists()
    trained = [p.detach().clone() for p in after]
    for parameter in after:
        parameter.data.zero_()
    load_weights(pipe, folder)
    assert all(torch.equal(a, b) for a, b in zip(trained, policy.trainable(), strict=True))
    del trainer, policy, pipe
    gc.collect()


class Redness:
    """Scores that differ between any two images."""

    def score(self, images, prompts):
        return images[:, 0].float().mean((1, 2))
