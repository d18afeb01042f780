"""What a folder holds that cannot serve is named before its weights are read, with the remedy."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from srrl.ddim import DISCRETE, make_schedule
from srrl.errors import UserError
from srrl.models.architectures import blank_pipeline
from srrl.models.loading import load_pipeline
from srrl.shapes.pipeline import SD_SCHEDULER, TINY_SD, TINY_SDXL
from tests.conftest import load_policy
from tests.models import POINTER, WEIGHTS, edit, linked, rewrite, same_weights, set_scheduler, write


def refused(model, said: str, **source) -> None:
    """Loading ends in one line that names the model and says so; so does counting its cost."""
    with pytest.raises(UserError, match=said) as caught:
        load_pipeline(str(model), **source)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value) or source


def lose_weights(folder):
    """What is refused now was so without them."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()


UNETS = [
    (TINY_SD, {"in_channels": 9}, "inpainting UNet of 9"),
    (TINY_SDXL, {"in_channels": 9}, "inpainting UNet of 9"),
    (TINY_SD, {"in_channels": 8}, "InstructPix2Pix"),
    (TINY_SD, {"in_channels": 5}, "depth-to-image"),
    (TINY_SD, {"in_channels": 7}, "upscaler"),
    (TINY_SD, {"out_channels": 8}, "learns its variance"),
    (TINY_SD, {"time_cond_proj_dim": 256}, "LCM-distilled"),
    (TINY_SD, {"class_embed_type": "projection"}, "class_embed_type='projection'"),
    (TINY_SD, {"num_class_embeds": 1000}, "num_class_embeds=1000"),
    (TINY_SDXL, {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
    (TINY_SDXL, {"addition_embed_type": "image"}, "addition_embed_type='image'"),
    (TINY_SD, {"addition_embed_type": "text_time"}, "addition_embed_type='text_time'"),
    (TINY_SDXL, {"projection_class_embeddings_input_dim": 144}, "refiner"),
    (TINY_SD, {"_class_name": "UNetMotionModel"}, "a UNetMotionModel"),
    (TINY_SD, {"quantization_config": {"load_in_4bit": True}}, "quantised"),
    (TINY_SD, {"sample_size": [8, 8]}, "sample_size"),
    (TINY_SD, {"cross_attention_dim": 1024}, "do not belong together"),
    (TINY_SD, {"norm_num_groups": 7}, "do not belong together"),
]


@pytest.mark.parametrize(("source", "change", "said"), UNETS, ids=[s for *_, s in UNETS])
def test_a_unet_that_cannot_serve_is_named(source, change, said, tmp_path):
    model = linked(tmp_path / "model", source)
    edit(model / "unet/config.json", **change)
    lose_weights(model)
    refused(model, said)
    with pytest.raises(UserError, match=said):
        blank_pipeline(str(model))


SCHEDULERS = [
    ({"_class_name": "EDMEulerScheduler"}, "EDM preconditioning"),
    ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM preconditioning"),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "EDM"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
    (
        {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
        "flow matching",
    ),
    ({"_class_name": "DDPMScheduler", "prediction_type": "sample"}, "prediction_type='sample'"),
    ({"_class_name": "LCMScheduler"}, "consistency-distilled"),
    ({"_class_name": "TCDScheduler"}, "consistency-distilled"),
    ({"_class_name": "CMStochasticIterativeScheduler"}, "consistency-distilled"),
    ({"_class_name": "MyScheduler"}, "not known"),
]


@pytest.mark.parametrize(
    ("config", "said"), SCHEDULERS, ids=[s["_class_name"] for s, _ in SCHEDULERS]
)
def test_a_scheduler_that_ddim_cannot_stand_for_is_named(config, said, tmp_path):
    model = linked(tmp_path / "model")
    set_scheduler(model, {**SD_SCHEDULER, **config})
    lose_weights(model)
    refused(model, said)
    edit(model / "scheduler/scheduler_config.json", _class_name="DDIMScheduler")
    if "prediction_type" not in config and len(config) == 1:  # the index decides, as in diffusers
        refused(model, said)
    with pytest.raises(UserError, match=said):
        make_schedule({**SD_SCHEDULER, **config}, 10, 1.0)


@pytest.mark.parametrize("name", sorted(DISCRETE))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_stands_for_every_discrete_scheduler_with_its_betas(name, prediction, tmp_path):
    kind = getattr(diffusers, name, None)
    config = {**SD_SCHEDULER, "beta_end": 0.011, "prediction_type": prediction}
    right = make_schedule(config, 10, 1.0)
    try:
        scheduler = kind.from_config({**config, "timestep_spacing": "leading"})
    except ImportError:  # DPMSolverSDE needs torchsde
        config["_class_name"], saved = name, config
    else:
        saved = dict(scheduler.config)
    ours = make_schedule(saved, 10, 1.0)
    assert torch.equal(ours.alpha, right.alpha) and torch.equal(ours.timesteps, right.timesteps)
    assert ours.prediction == prediction


def test_betas_that_are_none_are_one_line():
    for change in ({"beta_start": "x"}, {"beta_schedule": "sigmoid"}, {"beta_end": 7.0}):
        with pytest.raises(UserError, match="scheduler_config"):
            make_schedule({**SD_SCHEDULER, **change}, 10, 0.0)


# ---------------------------------------------------------------------- VAEs

VAES = [
    ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    ({"_class_name": "AsymmetricAutoencoderKL"}, "AsymmetricAutoencoderKL"),
    ({"latent_channels": 16}, "beside a VAE of 16"),
    ({"shift_factor": 0.1159}, "shift_factor=0.1159"),
    ({"scaling_factor": "x"}, "scaling_factor='x'"),
    ({"latents_mean": [0.0], "latents_std": [1.0]}, "4 numbers"),
]


@pytest.mark.parametrize(("change", "said"), VAES, ids=[s for _, s in VAES])
def test_a_vae_that_cannot_serve_is_named(change, said, tmp_path):
    model = linked(tmp_path / "model")
    edit(model / "vae/config.json", **change)
    refused(TINY_SD, said, vae=str(model / "vae"))
    refused(TINY_SD, said, vae=str(model))
    edit(model / "vae/config.json")
    lose_weights(model)
    refused(model, said)


@pytest.mark.slow
def test_latents_mean_and_std_are_honoured_as_by_the_sdxl_pipeline(tmp_path):
    model = linked(tmp_path / "model", TINY_SDXL)
    mean, std = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
    edit(model / "vae/config.json", latents_mean=mean, latents_std=std, scaling_factor=4.0)
    policy = load_policy(str(model), num_steps=4)
    pipe = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["a blue circle above a red square"] * 2
    options = {"latents": x, "num_inference_steps": 4, "guidance_scale": 3.0}
    theirs = pipe(prompts, output_type="pt", **options).images
    latents = pipe(prompts, output_type="latent", **options).images
    ours = policy.decode(latents).float() / 255
    assert (ours - theirs).abs().max() <= 0.51 / 255
    plain = load_policy("sdxl", num_steps=4).decode(latents).float() / 255
    assert (plain - theirs).abs().max() > 0.1


@pytest.mark.slow
def test_pretrained_vae_as_each_form_that_people_have_one_in(tmp_path):
    pipe = load_pipeline(str(TINY_SD))
    for parameter in pipe.vae.parameters():
        parameter.data += 0.01
    pipe.vae.register_to_config(scaling_factor=0.5)
    pipe.save_pretrained(tmp_path / "pipe")
    pipe.vae.save_pretrained(tmp_path / "vae")
    pipe.vae.save_pretrained(tmp_path / "half", variant="fp16")
    from tests.ldm import single_file_state

    whole = single_file_state(pipe)
    own = {k.removeprefix("first_stage_model."): v for k, v in whole.items() if "first_st" in k}
    save_file(own, tmp_path / "bare.safetensors")
    save_file({f"first_stage_model.{k}": v for k, v in own.items()}, tmp_path / "ldm.SAFETENSORS")
    save_file(pipe.vae.state_dict(), tmp_path / "named.safetensors")
    with_config = str(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    for given, scale in (
        ("pipe", 0.5),
        ("vae", 0.5),
        ("half", 0.5),
        (with_config, 0.5),
        ("bare.safetensors", 1.03153),  # a file has no config: the model's own
        ("ldm.SAFETENSORS", 1.03153),
        ("named.safetensors", 1.03153),
    ):
        loaded = load_pipeline(str(TINY_SD), vae=str(tmp_path / given)).vae
        assert same_weights(loaded, pipe.vae) and loaded.config.scaling_factor == scale, given
    write(tmp_path / "pointer.safetensors", POINTER)
    write(tmp_path / "old.pt", "x")
    (tmp_path / "empty").mkdir()
    for given, said in (
        ("pointer.safetensors", "git lfs pull"),
        ("old.pt", "only .safetensors"),
        ("empty", "has no vae/config.json"),
        (str(TINY_SD / WEIGHTS["unet"]), "a UNet2DConditionModel"),
        (str(TINY_SD / WEIGHTS["text_encoder"]), "pretrained.vae"),
    ):
        refused(TINY_SD, said, vae=str(tmp_path / given))


# ---------------------------------------------------------------------- folders


def other_pipeline(model):
    edit(model / "model_index.json", _class_name="FluxPipeline")


def broken_index(model):
    write(model / "model_index.json", '{"_class_name": "Stable')


def list_index(model):
    write(model / "model_index.json", "[]")


def tiny_vae(model):
    edit(model / "model_index.json", vae=["diffusers", "AutoencoderTiny"])


def no_encoder(model):
    edit(model / "model_index.json", text_encoder=[None, None])


def as_variant(model):
    for file in model.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))


def as_bin(model):
    for file in model.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def without(path):
    def change(model):
        for file in [model / path] if (model / path).is_file() else (model / path).iterdir():
            file.unlink()

    return change


def pointer(path):
    return lambda model: write(model / path, POINTER)


def other_text(**values):
    return lambda model: edit(model / "text_encoder/config.json", **values)


def no_length(model):
    write(model / "tokenizer/tokenizer_config.json", '{"tokenizer_class": "CLIPTokenizer"}')


FOLDERS = [
    (other_pipeline, "is a FluxPipeline"),
    (broken_index, "model_index.json cannot be read"),
    (list_index, "no JSON object"),
    (tiny_vae, "AutoencoderTiny as vae"),
    (no_encoder, "no text_encoder"),
    (as_variant, "--config.pretrained.variant=fp16"),
    (as_bin, "save_pretrained"),
    (without("model_index.json"), "has no model_index.json"),
    (without("unet/config.json"), "has no unet/config.json"),
    (without("vae"), "has no vae/config.json"),
    (without("scheduler"), "has no scheduler/scheduler_config.json"),
    (without("tokenizer"), "has no tokenizer/tokenizer.json"),
    (without("tokenizer/tokenizer_config.json"), "has no tokenizer/tokenizer_config.json"),
    (without(WEIGHTS["vae"]), "no .safetensors weights in vae"),
    (pointer(WEIGHTS["unet"]), "unet/diffusion_pytorch_model.safetensors is a git-lfs pointer"),
    (pointer("tokenizer/tokenizer.json"), "tokenizer.json is a git-lfs pointer"),
    (pointer("unet/config.json"), "git lfs pull"),
    (other_text(hidden_size=32), "do not belong together"),
    (other_text(vocab_size=500), "knows 500"),
    (other_text(max_position_embeddings=8), "a text encoder of 8"),
    (no_length, "model_max_length"),
]


@pytest.mark.parametrize(("change", "said"), FOLDERS, ids=[said for _, said in FOLDERS])
def test_a_folder_that_is_not_whole_is_one_line_with_its_remedy(change, said, tmp_path):
    model = linked(tmp_path / "model")
    change(model)
    refused(model, said)


def test_a_folder_one_level_off_says_which_to_give(tmp_path):
    model = linked(tmp_path / "above" / "model")
    refused(tmp_path / "above", f"give {model}")
    refused(model / "unet", f"give {model}")


def test_a_variant_that_is_not_there_and_one_that_is_in_part(tmp_path):
    refused(TINY_SD, "has no variant 'fp16'", variant="fp16")
    model = linked(tmp_path / "model")
    unet = model / WEIGHTS["unet"]
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    refused(model, "variant=fp16")
    assert same_weights(
        load_pipeline(str(model), variant="fp16").unet, load_pipeline(str(TINY_SD)).unet
    )


@pytest.mark.slow
def test_shards_are_one_model(tmp_path):
    pipe = load_pipeline(str(TINY_SD))
    pipe.save_pretrained(tmp_path / "model", max_shard_size="500KB")
    shards = sorted((tmp_path / "model/unet").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    assert same_weights(load_pipeline(str(tmp_path / "model")).unet, pipe.unet)
    shards[1].unlink()
    refused(tmp_path / "model", "incomplete or damaged")


def drop(state):
    state.pop(min(state))


def rename(state):
    state["x." + min(state)] = state.pop(min(state))


def reshape(state):
    state[max(state)] = torch.zeros(3, 3)


def spoil(state):
    state[max(state)].view(-1)[0] = float("nan")


def overflow(state):
    state[min(state)].view(-1)[-1] = float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop, "its PART does not fit its config: 1 of .* are missing"),
        (rename, "its PART does not fit its config: 1 of .* are missing"),
        (reshape, "its PART does not fit its config: 1 of .* are of other shapes"),
        (spoil, "its PART has numbers in .* not finite"),
        (overflow, "its PART has numbers in .* not finite"),
    ],
)
def test_weights_that_do_not_fit_are_counted_and_the_first_is_named(part, change, said, tmp_path):
    model = linked(tmp_path / "model")
    rewrite(model / WEIGHTS[part], change)
    refused(model, said.replace("PART", part))


def test_weights_in_old_names_and_with_more_than_is_needed_are_taken(tmp_path):
    model = linked(tmp_path / "model")
    for part, file in WEIGHTS.items():

        def more(state, part=part):
            if part == "text_encoder":  # as transformers 4 wrote it
                state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
                state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
            return state | {"more.weight": torch.zeros(2)}

        rewrite(model / file, more)
    ours, theirs = load_pipeline(str(model)), load_pipeline(str(TINY_SD))
    for part in WEIGHTS:
        assert same_weights(getattr(ours, part), getattr(theirs, part))


def test_a_vae_of_before_diffusers_0_12_is_read(tmp_path):
    """Its attention has the names query, key, value and proj_attn."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    vae.save_pretrained(tmp_path / "vae")

    def old(state):
        for new, before in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            state = {
                k.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): v
                for k, v in state.items()
            }
        return state

    rewrite(tmp_path / "vae/diffusion_pytorch_model.safetensors", old)
    assert any(
        "proj_attn" in k for k in load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    )
    assert same_weights(load_pipeline(str(TINY_SD), vae=str(tmp_path / "vae")).vae, vae)


def test_a_model_in_the_hub_cache_is_read_like_a_folder(tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "models--somebody--tiny"
    commit = "0123456789abcdef" * 2 + "01234567"
    model = linked(cache / "snapshots" / commit)
    write(cache / "refs/main", commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    ours = load_pipeline("somebody/tiny", vae="somebody/tiny")
    assert same_weights(ours.unet, load_pipeline(str(TINY_SD)).unet)
    edit(model / "unet/config.json", in_channels=9)
    refused("somebody/tiny", "inpainting UNet")
