"""Models in one file: exact where whole, their markers honoured, others named by what they are."""

import struct

import pytest
import torch
from safetensors.torch import save_file

from srrl.errors import UserError
from srrl.models.architectures import blank_pipeline
from srrl.models.loading import load_pipeline
from srrl.models.parts import faults
from srrl.models.policy import Policy
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from tests.ldm import single_file_state
from tests.models import POINTER, WEIGHTS, edit, linked, same_weights, write

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
BIG_G = "conditioner.embedders.1."
FIRST, LAST = UNET + "input_blocks.0.0.weight", UNET + "out.2.weight"


@pytest.fixture(scope="module")
def states():
    return {p: single_file_state(load_pipeline(str(p))) for p in (TINY_SD, TINY_SDXL)}


@pytest.fixture
def make(tmp_path, states):
    """A file of a tiny pipeline's state with a change: a dict to add (None removes), or a type."""

    def made(change=None, source=TINY_SD, name="model.safetensors", metadata=None, dtype=None):
        state = states[source] | (change or {})
        state = {k: v for k, v in state.items() if v is not None}
        if dtype:
            state = {k: v.to(dtype) for k, v in state.items()}
        save_file(state, tmp_path / name, metadata)
        return str(tmp_path / name)

    return made


def load(file, source=TINY_SD, **options):
    return load_pipeline(file, single_file_config=str(source), **options)


def refused(file, said, source=TINY_SD, **options):
    with pytest.raises(UserError, match=said) as caught:
        load(file, source, **options)
    assert "\n" not in str(caught.value)


def none_of(state, *prefixes):
    return {key: None for key in state if key.startswith(prefixes)}


@pytest.mark.slow
@pytest.mark.parametrize("source", [TINY_SD, TINY_SDXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.SAFETENSORS"])
def test_a_whole_file_is_the_model_it_was_made_from(make, source, dtype, name):
    more = {"model_ema.decay": torch.ones(1), "betas": torch.ones(3)}
    ours = load(make(more, source, name, dtype=dtype), source)
    theirs = load_pipeline(str(source))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, other = getattr(ours, part, None), getattr(theirs, part, None)
        if other is not None:
            assert same_weights(one, other.to(dtype or torch.float32).float()), part
    assert type(ours.scheduler) is type(theirs.scheduler)
    assert blank_pipeline(make(more, source, name)).unet.config.cross_attention_dim > 128


@pytest.mark.slow
def test_text_encoders_of_old_files(make, states):
    """Without `text_model`, and with position_ids of either type."""
    old = {}
    for key, value in states[TINY_SD].items():
        if key.startswith(TEXT):
            old |= {key: None, key.replace("text_model.", ""): value}
    theirs = load_pipeline(str(TINY_SD)).text_encoder
    assert same_weights(load(make(old)).text_encoder, theirs)
    for dtype in (torch.int64, torch.float16):
        ids = {TEXT + "transformer.text_model.embeddings.position_ids": torch.arange(16)[None]}
        ids = {k: v.to(dtype) for k, v in ids.items()}
        assert same_weights(load(make(ids)).text_encoder, theirs)


EMPTY = torch.zeros(0)


@pytest.mark.slow
@pytest.mark.parametrize("source", [TINY_SD, TINY_SDXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize(
    ("markers", "metadata", "values"),
    [
        ({"v_pred": EMPTY}, {}, {"prediction_type": "v_prediction"}),
        ({"ztsnr": EMPTY}, {}, {}),  # read of a model of v alone
        (
            {},
            {"modelspec.architecture": "stable-diffusion-v2-768-v"},
            {"prediction_type": "v_prediction"},
        ),
        ({}, {"modelspec.prediction_type": " EPS "}, {}),
        (
            {"v_pred": EMPTY, "ztsnr": EMPTY},
            {"modelspec.prediction_type": "v"},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        ),
        (
            {},
            {"modelspec.prediction_type": "v", "modelspec.architecture": "stable-diffusion-v1"},
            {"prediction_type": "v_prediction"},
        ),
        ({}, {"modelspec.prediction_type": "epsilon"}, {}),
        ({}, {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, {}),
    ],
)
def test_markers_are_the_scheduler_set_by_hand(make, tmp_path, source, markers, metadata, values):
    file = make(markers, source, metadata=metadata)
    options = {"num_steps": 10, "eta": 1.0, "micro_batch": 4}
    ours = Policy.load(file, single_file_config=str(source), **options)
    by_hand = linked(tmp_path / "by_hand", source)
    edit(by_hand / "scheduler/scheduler_config.json", **values)
    theirs = Policy.load(str(by_hand), **options)
    assert ours.schedule.prediction == theirs.schedule.prediction
    assert ours.schedule.prediction == values.get("prediction_type", "epsilon")
    assert torch.equal(ours.schedule.alpha, theirs.schedule.alpha)
    assert torch.equal(ours.schedule.timesteps, theirs.schedule.timesteps)
    assert ours.schedule.alpha_0 == theirs.schedule.alpha_0


@pytest.mark.slow
def test_markers_that_contradict_are_refused(make, tmp_path):
    epsilon = {"modelspec.prediction_type": "epsilon"}
    refused(make({"v_pred": EMPTY}, metadata=epsilon), "contradicts itself")
    v = linked(tmp_path / "v")
    edit(v / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    refused(make(metadata=epsilon), "modelspec.prediction_type=epsilon, and .* v_prediction", v)
    assert load(make(), v).scheduler.config.prediction_type == "v_prediction"
    refused(make(metadata={"modelspec.prediction_type": "flow"}), "prediction_type=flow")


def channels(key, places, n):
    """A convolution with another number of channels at one of its places."""

    def change(state):
        shape = list(state[key].shape)
        shape[places] = n
        return {key: torch.zeros(shape)}

    return change


@pytest.mark.parametrize(
    ("source", "change", "said"),
    [
        (TINY_SD, channels(FIRST, 1, 9), "an inpainting UNet of 9"),
        (TINY_SDXL, channels(FIRST, 1, 9), "an inpainting UNet of 9"),
        (TINY_SD, channels(FIRST, 1, 8), "an InstructPix2Pix UNet"),
        (TINY_SD, channels(FIRST, 1, 5), "a depth-to-image UNet"),
        (TINY_SD, channels(LAST, 0, 8), "learns its variance"),
        (TINY_SD, channels(FIRST, 2, 1), "its unet does not fit its config: 1 of"),
        (TINY_SD, lambda s: none_of(s, FIRST), "incomplete"),
        (TINY_SD, lambda s: {UNET + "time_embed.cond_proj.weight": EMPTY}, "LCM-distilled"),
        (TINY_SD, lambda s: {"edm_vpred.sigma_max": EMPTY}, "EDM preconditioning"),
        (TINY_SDXL, lambda s: {"edm_mean": EMPTY, "edm_std": EMPTY}, "Playground v2.5"),
        (TINY_SD, lambda s: {UNET + "label_emb.0.0.weight": EMPTY}, "unCLIP"),
        (
            TINY_SDXL,
            lambda s: (
                none_of(s, "conditioner.")
                | {
                    k.replace(BIG_G, "conditioner.embedders.0."): v
                    for k, v in s.items()
                    if BIG_G in k
                }
            ),
            "an SDXL refiner",
        ),
        (TINY_SD, lambda s: none_of(s, VAE), "config.pretrained.vae=VAE"),
        (TINY_SDXL, lambda s: none_of(s, UNET + "label_emb"), "damaged, or do not belong"),
        (TINY_SD, lambda s: none_of(s, UNET + "middle_block.1.norm"), "its unet .* 2 of"),
        (TINY_SD, lambda s: none_of(s, VAE + "decoder.mid.block_1.norm1"), "its vae .* 2 of"),
        (
            TINY_SD,
            lambda s: none_of(s, TEXT + "transformer.text_model.encoder.layers.0.layer_norm1"),
            "its text_encoder .* 2 of",
        ),
        (TINY_SD, lambda s: {FIRST: s[FIRST].to(torch.float8_e4m3fn)}, "F8_E4M3.*fp16"),
        (TINY_SD, lambda s: {FIRST: s[FIRST].to(torch.float8_e5m2)}, "F8_E5M2"),
        (TINY_SD, lambda s: {LAST: s[LAST] * float("nan")}, "not finite"),
        (TINY_SDXL, lambda s: {}, "a StableDiffusionXLPipeline: give its own"),
    ],
)
def test_a_whole_file_that_cannot_serve_is_named(make, states, source, change, said):
    file = make(change(states[source]), source)
    refused(file, said, TINY_SD if "give its own" in said else source)


def only(prefix, strip=True):
    return lambda s: {
        k.removeprefix(prefix if strip else ""): v for k, v in s.items() if k.startswith(prefix)
    }


Z = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (only(VAE), "is a VAE: give it as --config.pretrained.vae"),
        (only(VAE, strip=False), "is a VAE"),
        (only(UNET), "is a UNet by itself"),
        (only(TEXT + "transformer."), "is a text encoder"),
        (lambda s: load_pipeline(str(TINY_SD)).unet.state_dict(), "is a UNet by itself"),
        (lambda s: load_pipeline(str(TINY_SD)).vae.state_dict(), "is a VAE"),
        (lambda s: load_pipeline(str(TINY_SD)).text_encoder.state_dict(), "is a text encoder"),
        (lambda s: {"lora_unet_down_blocks_0.lora_down.weight": Z}, "is a LoRA: give it as --ch"),
        (lambda s: {"unet.down_blocks.0.to_q.lora_A.weight": Z}, "is a LoRA"),
        (lambda s: {"lora_te_x.hada_w1_a": Z}, "is a LoRA"),
        (lambda s: {"control_model.input_blocks.0.0.weight": Z}, "is a ControlNet"),
        (lambda s: {"controlnet_cond_embedding.conv_in.weight": Z}, "is a ControlNet"),
        (lambda s: {"double_blocks.0.img_attn.norm.key_norm.scale": Z}, "is a Flux"),
        (lambda s: {UNET + "joint_blocks.0.x": Z}, "is an SD3"),
        (lambda s: {"transformer_blocks.0.attn.to_q.weight": Z}, "a diffusion transformer"),
        (lambda s: {UNET + "blocks.0.self_attn.q.weight": Z}, "of another architecture"),
        (lambda s: {"emb_params": Z}, "a textual inversion"),
        (lambda s: {"classifier.weight": Z}, r"none of its 1 tensors is known \(classifier.w"),
        (lambda s: {}, "none of its 0 tensors"),
    ],
)
def test_what_is_no_model_is_named(tmp_path, states, state, said):
    file = tmp_path / "other.safetensors"
    save_file({k: v.contiguous() for k, v in state(states[TINY_SD]).items()}, file)
    refused(str(file), said)
    with pytest.raises(UserError, match=said):
        blank_pipeline(str(file))


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("stable-diffusion-v1/lora", "is of modelspec.architecture=stable-diffusion-v1/lora: a Lo"),
        ("stable-diffusion-xl-v1-refiner", "refiner"),
        ("flux-1-dev", "flux-1-dev"),
        ("stable-diffusion-3-medium", "stable-diffusion-3"),
    ],
)
def test_what_the_standard_header_says(make, architecture, said):
    refused(make(metadata={"modelspec.architecture": architecture}), said)


@pytest.mark.slow
def test_parts_that_are_missing_and_parts_that_are_given(make, states, tmp_path):
    theirs = load_pipeline(str(TINY_SD))
    no_vae = make(none_of(states[TINY_SD], VAE), name="no_vae.safetensors")
    for vae in (TINY_SD, TINY_SD / "vae", TINY_SD / WEIGHTS["vae"]):
        ours = load(no_vae, vae=str(vae))
        assert same_weights(ours.vae, theirs.vae) and same_weights(ours.unet, theirs.unet)
    refused(no_vae, "has no VAE: add --config.pretrained.vae")
    no_text = make(none_of(states[TINY_SD], TEXT), name="no_text.safetensors")
    assert same_weights(load(no_text).text_encoder, theirs.text_encoder)
    bare = linked(tmp_path / "bare")
    (bare / WEIGHTS["text_encoder"]).unlink()
    refused(no_text, "has no text_encoder, nor has config.pretrained.single_file_config", bare)
    index = linked(tmp_path / "index")
    edit(index / "model_index.json", vae=[None, None])
    for ours in (
        load(no_vae, index, vae=str(TINY_SD)),
        load_pipeline(str(index), vae=str(TINY_SD)),
    ):
        assert same_weights(ours.vae, theirs.vae)
    with pytest.raises(UserError, match="single_file_config=DIR"):
        load_pipeline(make())


def test_sd_2_says_neither_epsilon_nor_v_and_needs_a_config(make, states, tmp_path):
    """Its text encoder is OpenCLIP's."""
    from tests.ldm import open_clip

    text = load_pipeline(str(TINY_SD)).text_encoder
    renamed = open_clip(text.state_dict(), TEXT + "model.")
    file = make(none_of(states[TINY_SD], TEXT) | renamed)
    assert same_weights(load(file).text_encoder, text)
    with pytest.raises(
        UserError, match=r"SD 2.x model, and does not say .*single_file_config=MODEL"
    ):
        load_pipeline(file)


def test_damaged_files_and_pointers(make, tmp_path):
    whole = (tmp_path / make()).read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    for name, content, said in (
        ("pointer", POINTER, "git lfs pull"),
        ("empty", b"", "incomplete or damaged"),
        ("cut", whole[:-1000], "incomplete or damaged"),
        ("head", whole[: 8 + size // 2], "incomplete or damaged"),
        ("html", "<!DOCTYPE html><html>Not Found</html>", "a web page"),
        ("zip", b"PK\x03\x04" + bytes(100), "a PyTorch file that was renamed"),
        ("index", '{"_class_name": "StableDiffusionPipeline"}', "a JSON file: give its folder"),
    ):
        write(tmp_path / f"{name}.safetensors", content)
        refused(str(tmp_path / f"{name}.safetensors"), said)
        with pytest.raises(UserError, match=said):
            blank_pipeline(str(tmp_path / f"{name}.safetensors"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + b"x" * 50, "a PyTorch file that was renamed: it may run code"),
        (b"\x80\x02}q" + b"x" * 50, "a pickle that was renamed"),
        (b"GGUF" + b"x" * 50, "a GGUF file that was renamed: a quantised"),
        (b"<!DOCTYPE html>", "a web page, not the file"),
    ],
)
def test_a_file_of_another_kind_is_named_by_what_it_begins_with(content, said, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(str(tmp_path / "model.safetensors"), said)


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("a/b", "Access to model a/b is restricted: a gated repo", "accept its terms on hugging"),
        ("a/b", "no file with `safetensors` weights", "convert them once by `python -c"),
        ("a/b.safetensors", "not a repository", "there is no such file"),
    ],
)
def test_what_a_library_says_of_a_model_that_cannot_be_had_has_a_remedy(name, told, said):
    with pytest.raises(UserError, match=said), faults("pretrained.model", name):
        raise OSError(told)


def test_a_file_with_its_averaged_weights_alone_is_named(make, states):
    state = states[TINY_SD]
    change = none_of(state, UNET)
    change |= {f"model_ema.{k.removeprefix('model.')}": v for k, v in state.items() if UNET in k}
    refused(make(change), r"averaged weights \(EMA\) alone")


def test_a_vaes_file_beside_another_programs_config_is_the_models_own(make, states, tmp_path):
    vae = {k: v for k, v in states[TINY_SD].items() if k.startswith(VAE)}
    (tmp_path / "vae").mkdir()
    save_file({k.removeprefix(VAE): v for k, v in vae.items()}, tmp_path / "vae" / "x.safetensors")
    (tmp_path / "vae" / "config.json").write_text('{"run_name": "x"}')
    given = str(tmp_path / "vae" / "x.safetensors")
    assert same_weights(load(make(), vae=given).vae, load(make()).vae)


def test_an_sdxl_folder_that_asks_for_a_watermark_is_drawn_without(tmp_path):
    edit(linked(tmp_path / "xl", TINY_SDXL) / "model_index.json", add_watermarker=True)
    assert load_pipeline(str(tmp_path / "xl")).watermark is None
