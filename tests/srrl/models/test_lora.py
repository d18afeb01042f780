"""A LoRA's file, whoever wrote it: exactly its effect, or one line that says what it is."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from srrl.errors import UserError
from srrl.models.ldm_names import blocks, original_name
from srrl.models.lora import changed, read_lora
from srrl.models.lora_file import HEADER, Delta, read_lora_file
from srrl.models.lora_uses import draw_with, export_kohya
from tests.conftest import BOTH, MODELS, load_policy
from tests.loras import (
    PEFT,
    attention_processors,
    diffusers,
    kohya,
    layers,
    merged,
    old_diffusers,
    random_delta,
    write,
    write_header,
    write_peft,
)
from tests.slow.load_lora import inputs

PIPES = {model: load_policy(model).pipe for model in MODELS}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def ldm(pipe):
    names = blocks(pipe.unet)
    return lambda part, name: original_name(name, names) if part == "unet" else name


def wrapped(parts: dict) -> dict:
    return diffusers(parts, lambda part: f"module._orig_mod.{part}.")


# What writes each format: (a pipeline's name, deltas by part, file) -> the file.
WRITERS = {
    "kohya": lambda m, p, f: write(kohya(p), f),
    "kohya, original names": lambda m, p, f: write(kohya(p, ldm(PIPES[m])), f),
    "diffusers": lambda m, p, f: write(diffusers(p), f),
    "diffusers, header": lambda m, p, f: write_header(p, f),
    "diffusers, adapter": lambda m, p, f: write(diffusers(p, adapter="default."), f),
    "diffusers, old": lambda m, p, f: write(old_diffusers(p), f),
    "wrappers": lambda m, p, f: write(wrapped(p), f),
    "no prefix": lambda m, p, f: write(diffusers(p, lambda part: ""), f),
    "peft": lambda m, p, f: write_peft(p["unet"], f.parent),
    "attention processors": lambda m, p, f: write(attention_processors(p), f),
}
UNET_ONLY = ("peft", "no prefix", "attention processors")


@pytest.fixture(params=BOTH)
def model(request) -> str:
    return request.param


@pytest.fixture
def one(model, tmp_path):
    """Writes deltas of all attention layers in a format and gives (deltas, file)."""

    def make(form: str = "kohya", ranks=(1, 2, 4), alphas=(1, 2, 4, 8), parts=("unet",)):
        deltas = {
            part: {
                n: random_delta(w, ranks[i % len(ranks)], alphas[i % len(alphas)], i)
                for i, (n, w) in enumerate(layers(PIPES[model], part).items())
                if n.endswith(ATTENTION) or part != "unet"
            }
            for part in parts
        }
        return deltas, WRITERS[form](model, deltas, tmp_path / "lora.safetensors")

    return make


def same(read: dict, written: dict, pipe, tolerance: float = 1e-5) -> None:
    """Module by module: what is read changes each weight as what was written says."""
    assert {p: set(d) for p, d in read.items()} == {p: set(d) for p, d in written.items()}
    for part, deltas in written.items():
        for name, delta in deltas.items():
            weight = layers(pipe, part)[name]
            right = merged(weight, delta)
            difference = (changed(weight, read[part][name]) - right).norm()
            assert difference < tolerance * (right - weight).norm(), (part, name)


@pytest.mark.slow
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_lora_in_any_format_reads_back_as_the_same_deltas(data, tmp_path):
    model = data.draw(st.sampled_from(sorted(MODELS)))
    form = data.draw(st.sampled_from(sorted(WRITERS)))
    pipe, parts = PIPES[model], ["unet"]
    if form not in UNET_ONLY and data.draw(st.booleans()):
        parts += ["text_encoder", "text_encoder_2"] if model == "sdxl" else ["text_encoder"]
    deltas = {}
    for part in parts:
        known = layers(pipe, part)
        if form == "attention processors":
            known = {n: w for n, w in known.items() if n.endswith(ATTENTION)}
        chosen = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=6))
        deltas[part] = {
            n: random_delta(
                known[n],
                data.draw(st.integers(1, 9)),
                data.draw(st.floats(0.25, 64, width=16)),
                data.draw(st.integers(0, 99)),
            )
            for n in dict.fromkeys(chosen)
        }
    kind = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    file = WRITERS[form](model, deltas, tmp_path / form / "lora.safetensors")
    if kind != torch.float32:  # alphas, too, as kohya-ss saves them
        header = {"lora_adapter_metadata": meta} if (meta := header_of(file)) else None
        state = {k: v.to(kind) for k, v in load_file(file).items()}
        write(state, file, header)
    lora = read_lora(pipe, file, "it")
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
    same(lora.parts, deltas, pipe, rounding[kind])


def header_of(file: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get("lora_adapter_metadata")


def merged_output(pipe, written: dict) -> torch.Tensor:
    """What a UNet says with a LoRA merged into its weights by hand."""
    unet = type(pipe.unet).from_config(pipe.unet.config)
    state = pipe.unet.state_dict()
    for name, delta in written["unet"].items():
        state[f"{name}.weight"] = merged(state[f"{name}.weight"], delta)
    unet.load_state_dict(state)
    return unet.eval()(**inputs(unet)).sample


@torch.no_grad()
def off(pipe, file: Path, right: torch.Tensor) -> float:
    """|ours - right| / |right - base| of the UNet's output with the file's LoRA on it."""
    base = pipe.unet(**inputs(pipe.unet)).sample
    lora = read_lora(pipe, file, "it")
    draw_with(pipe, lora)
    ours = pipe.unet(**inputs(pipe.unet)).sample
    return float((ours - right).norm() / (right - base).norm())


@pytest.mark.parametrize("form", WRITERS)
def test_a_lora_is_drawn_with_as_if_it_were_merged(form, one, model):
    written, file = one(form)
    with torch.no_grad():
        right = merged_output(PIPES[model], written)
    assert off(load_policy(model).pipe, file, right) < 1e-5


def test_text_encoders_are_changed_as_the_file_says(one, model):
    parts = ("unet", "text_encoder", "text_encoder_2")[: 2 + (model == "sdxl")]
    written, file = one("kohya", parts=parts)
    policy, plain = load_policy(model), PIPES[model]
    lora = read_lora(policy.pipe, file, "it")
    draw_with(policy.pipe, lora)
    for part in parts[1:]:
        encoder, ids = getattr(policy.pipe, part), torch.arange(9)[None]
        right = type(encoder)(getattr(plain, part).config)
        state = getattr(plain, part).state_dict()
        for name, delta in written[part].items():
            state[f"{name}.weight"] = merged(state[f"{name}.weight"], delta)
        right.load_state_dict(state)
        ours, theirs = encoder(ids), right.eval()(ids)
        torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    count = sum(len(written[part]) for part in parts[1:])
    assert str(lora).endswith(f"kohya, and {count} of the text encoders")


def test_what_was_taken_is_said(one, model):
    written, file = one("kohya", ranks=(4,), alphas=(4,))
    text = f"{len(written['unet'])} modules of rank 4, alpha 4, kohya"
    assert str(read_lora(PIPES[model], file, "it")) == text
    written, file = one("peft", ranks=(1, 4), alphas=(2, 8))
    text = f"{len(written['unet'])} modules of rank 1 to 4, alpha 2 to 8, peft"
    assert str(read_lora(PIPES[model], file, "it")) == text


def dora_delta(weight: torch.Tensor, by_row: bool, seed: int) -> Delta:
    delta = random_delta(weight, 4, 4, seed)
    lengths = (
        weight.flatten(1).norm(dim=1)
        if by_row
        else weight.transpose(0, 1).flatten(1).norm(dim=1)[None]
    )
    return Delta(delta.down, delta.up, delta.scale, lengths.detach() * 1.5)


@pytest.mark.parametrize("form", ["peft", "rows", "columns"])
def test_dora_is_drawn_exactly(form, model, tmp_path):
    """W' = m (W + B A) / |W + B A|: peft's magnitudes are of the rows, LyCORIS has both."""
    pipe = PIPES[model]
    chosen = {n: w for n, w in layers(pipe).items() if n.endswith(("to_q", "conv1"))}
    deltas = {n: dora_delta(w, form != "columns", i) for i, (n, w) in enumerate(chosen.items())}
    if form == "peft":
        state = diffusers({"unet": deltas})
        state |= {f"unet.{n}.lora_magnitude_vector": d.magnitude for n, d in deltas.items()}
    else:
        state = kohya({"unet": deltas})
        for n, d in deltas.items():
            ones = [1] * (d.down.dim() - 2)
            rows = d.magnitude[:, None] if form == "rows" else d.magnitude
            state[f"lora_unet_{n.replace('.', '_')}.dora_scale"] = rows.view(*rows.shape, *ones)
    file = write(state, tmp_path / "dora.safetensors")
    right = pipe.unet.state_dict()
    for n, d in deltas.items():
        total = merged(chosen[n], d)
        dims = tuple(i for i in range(total.dim()) if i != (form == "columns"))
        scale = d.magnitude.flatten() / total.pow(2).sum(dims).sqrt()
        shape = [1] * total.dim()
        shape[int(form == "columns")] = -1
        right[f"{n}.weight"] = total * scale.view(shape)
    unet = type(pipe.unet).from_config(pipe.unet.config)
    unet.load_state_dict(right)
    with torch.no_grad():
        assert off(load_policy(model).pipe, file, unet.eval()(**inputs(unet)).sample) < 1e-5
    again = tmp_path / "again.safetensors"
    lora = export_kohya(pipe, again, read_lora(pipe, file, "it"))
    assert "DoRA" in str(lora)
    read = read_lora(pipe, again, "it").parts["unet"]
    for n in deltas:
        torch.testing.assert_close(changed(chosen[n], read[n]), right[f"{n}.weight"])


def test_a_convolution_between_two_linear_ones_is_folded(tmp_path):
    """LyCORIS' LoCon with a mid weight: up(mid(down(x)))."""
    pipe, g = PIPES["sd"], torch.Generator().manual_seed(0)
    name = "down_blocks.0.resnets.0.conv1"
    weight = layers(pipe)[name]
    down, mid = (
        torch.randn(3, weight.shape[1], 1, 1, generator=g),
        torch.randn(3, 3, 3, 3, generator=g),
    )
    up, x = (
        torch.randn(len(weight), 3, 1, 1, generator=g),
        torch.randn(1, weight.shape[1], 8, 8, generator=g),
    )
    key = f"lora_unet_{name.replace('.', '_')}"
    state = {f"{key}.lora_{k}.weight": v for k, v in (("down", down), ("mid", mid), ("up", up))}
    file = write(state | {f"{key}.alpha": torch.tensor(6.0)}, tmp_path / "locon.safetensors")
    delta = read_lora(pipe, file, "it").parts["unet"][name]
    conv = torch.nn.functional.conv2d
    right = 2 * conv(conv(conv(x, down), mid, padding=1), up)
    ours = conv(x, changed(torch.zeros_like(weight), delta), padding=1)
    torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_an_export_has_each_modules_own_alpha_and_the_text_encoders(form, one, model, tmp_path):
    parts = ("unet",) if form == "peft" else ("unet", "text_encoder")
    written, file = one(form, parts=parts)
    out = tmp_path / "out.safetensors"
    said = export_kohya(PIPES[model], out, read_lora(PIPES[model], file, "it"))
    assert ("text encoders" in str(said)) == (len(parts) > 1)
    state = load_file(out)
    te = "lora_te1" if model == "sdxl" else "lora_te"
    for part, prefix in (("unet", "lora_unet"), ("text_encoder", te)):
        for name, d in written.get(part, {}).items():
            name = f"text_model.{name}" if name.startswith("encoder.") else name
            key = f"{prefix}_{name.replace('.', '_')}"
            alpha = float(state[f"{key}.alpha"])
            assert alpha == (d.rank if form == "diffusers" else pytest.approx(d.alpha))
            ours = (
                alpha / d.rank * state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
            )
            torch.testing.assert_close(ours, d.scale * d.up @ d.down, atol=1e-5, rtol=1e-5)
    assert len(state) == 3 * sum(map(len, written.values()))


def test_an_export_may_go_where_its_source_lies(one, model):
    _, file = one("kohya")
    before = load_file(file, device="cpu")
    before = {k: v.clone() for k, v in before.items()}
    export_kohya(PIPES[model], file, read_lora(PIPES[model], file, "it"))
    after = load_file(file)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in after)
    assert [f.name for f in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_peft_config_beside_weights_without_its_prefix_is_obeyed(prefix, one, model):
    written, file = one("peft", ranks=(4,), alphas=(8,))
    state = {k.replace(PEFT, prefix): v.clone() for k, v in load_file(file).items()}
    for name in ("adapter_model.safetensors", "other.safetensors"):
        read = read_lora(PIPES[model], write(state, file.parent / name), "it")
        same(read.parts, written, PIPES[model])


def test_a_header_of_a_unet_by_itself_is_obeyed(one, model):
    """diffusers' save_lora_adapter: its header does not name the part."""
    written, file = one("diffusers, header", ranks=(4,), alphas=(8,))
    header = json.loads(header_of(file))
    bare = {k.removeprefix("unet."): v for k, v in header.items()}
    state = {k.removeprefix("unet."): v.clone() for k, v in load_file(file).items()}
    write(state, file, {"lora_adapter_metadata": json.dumps(bare)})
    same(read_lora(PIPES[model], file, "it").parts, written, PIPES[model])


NAMES = {  # of ComfyUI, LyCORIS and a pipeline that was wrapped whole
    "text_encoders.clip_l.transformer.": "text_encoder",
    "clip_l.": "text_encoder",
    "": "text_encoder",
    "base_model.model.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "clip_g.": "text_encoder_2",
}


@pytest.mark.parametrize("prefix", NAMES)
def test_text_encoders_have_other_names_in_other_programs(prefix, tmp_path):
    part, pipe = NAMES[prefix], PIPES["sdxl"]
    known = {n: w for n, w in layers(pipe, part).items() if n.endswith("q_proj")}
    deltas = {n: random_delta(w, 2, 2, i) for i, (n, w) in enumerate(known.items())}
    names = {n: n if n.startswith("text_model.") else f"text_model.{n}" for n in deltas}
    state = diffusers({part: {names[n]: d for n, d in deltas.items()}}, lambda _: prefix)
    file = write(state, tmp_path / "te.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2, "r": 2}')
    same(read_lora(pipe, file, "it").parts, {part: deltas}, pipe)


def test_a_hint_of_the_family_is_given_only_where_its_text_is_of_another_width(model, tmp_path):
    weight = layers(PIPES[model])["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    name = "nowhere.attn2.to_k"
    state = diffusers({"unet": {name: random_delta(weight, 2, 2, 0)}})
    with pytest.raises(
        UserError, match=r"1 of its 1 modules are not of this model, as nowhere\S+$"
    ):
        read_lora(PIPES[model], write(state, tmp_path / "lora.safetensors"), "it")


def of_kohya(key: str) -> str:
    module, role = key.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
    role = {"lora_A": "lora_down", "lora_B": "lora_up"}[role]
    return f"lora_unet_{module.replace('.', '_')}.{role}.weight"


REFUSED = {
    "LoHa": (lambda s: {"unet.x.hada_w1_a": torch.ones(2, 2)}, "is no plain LoRA, but LoHa"),
    "LoKr": (lambda s: {"lora_unet_x.lokr_w1": torch.ones(2, 2)}, "is no plain LoRA, but LoKr"),
    "OFT": (lambda s: {"lora_unet_x.oft_blocks": torch.ones(2, 2)}, "is no plain LoRA, but OFT"),
    "diff": (
        lambda s: s | {"lora_unet_x.diff_b": torch.ones(2)},
        r"holds full differences \(diff\) besides a plain LoRA, as 'lora_unet_x.diff_b'",
    ),
    "bias": (lambda s: s | {"unet.x.lora_B.bias": torch.ones(2)}, "holds other weights besides"),
    "model": (lambda s: {"conv_in.weight": torch.ones(2)}, "holds no LoRA, but 1 other tensors"),
    "empty": (lambda s: {}, "holds no tensor at all"),
    "stranger": (
        lambda s: {k.replace("to_q.", "to_x."): v for k, v in s.items()},
        r"\d+ of its \d+ modules are not of this model, as down_blocks.*to_x, .*to_x",
    ),
    "other prefix": (
        lambda s: {f"controlnet.{k}": v for k, v in s.items()},
        r"(\d+) of its \1 modules are not of this model, as controlnet",
    ),
    "half": (
        lambda s: {k: v for i, (k, v) in enumerate(s.items()) if i},
        r"down_blocks.*: its down weights are missing",
    ),
    "ranks": (
        lambda s: {k: v[:1] if i == 0 else v for i, (k, v) in enumerate(s.items())},
        r"down_blocks.*: is of rank 1 in one weight and 4 in the other",
    ),
    "shape": (
        lambda s: {k: v[:, :5] if i == 0 else v for i, (k, v) in enumerate(s.items())},
        r"1 of its \d+ modules have other sizes, as down_blocks.* \(\[.*\], not \[",
    ),
    "nan": (
        lambda s: {k: v * float("nan") if i == 1 else v for i, (k, v) in enumerate(s.items())},
        r"lora.safetensors has numbers that are not finite in 'unet.down_blocks.*lora_B.weight'",
    ),
    "too large": (
        lambda s: {k: v * 1e12 for k, v in s.items()},
        r"down_blocks.*: it adds up to .* to a weight: it is damaged",
    ),
    "scales of fp8": (
        lambda s: s | {"unet.x.lora_A.scale_weight": torch.ones(1)},
        "holds other weights besides a plain LoRA, as 'unet.x.lora_A.scale_weight'",
    ),
    "integers": (lambda s: {k: v.int() for k, v in s.items()}, "torch.int32"),
    "two adapters": (
        lambda s: (
            s
            | {k.replace(".weight", ".b.weight"): v for k, v in s.items()}
            | {k.replace(".weight", ".a.weight"): v for k, v in s.items()}
        ),
        r"holds several adapters \(a, b\): save one",
    ),
    "twice": (
        lambda s: s | {k.removeprefix("unet."): v for k, v in s.items()},
        "holds the same module twice",
    ),
    "twice, other names": (
        lambda s: s | {k.removeprefix("unet.").replace(".to_q", "_to_q"): v for k, v in s.items()},
        "not of this model|holds the same module twice",
    ),
    "twice, another program's names": (
        lambda s: s | {of_kohya(k): v for k, v in s.items()},
        "holds the same module twice",
    ),
    "peft without its config": (
        lambda s: {PEFT + k.removeprefix("unet."): v for k, v in s.items()},
        "peft's weights without adapter_config.json, which has their alpha: put it beside",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_lora_of_this_model_is_refused_by_its_name(kind, tmp_path):
    change, said = REFUSED[kind]
    chosen = {n: w for n, w in layers(PIPES["sd"]).items() if n.endswith("to_q")}
    state = diffusers({"unet": {n: random_delta(w, 4, 4, 0) for n, w in chosen.items()}})
    file = write(change(state), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=f"^it: .*{said}") as error:
        read_lora(PIPES["sd"], file, "it")
    assert "\n" not in str(error.value)


def test_a_lora_of_another_family_is_refused_with_whose_it_is(one, model):
    other = {"sd": "sdxl", "sdxl": "sd"}[model]
    _, file = one("diffusers")
    with pytest.raises(UserError, match=r"of its .* modules "):
        read_lora(PIPES[other], file, "it")
    with pytest.raises(UserError, match=r"are not of this model.*: it is for SDXL"):
        keys = {
            f"lora_unet_input_blocks_9_9_attn2_to_k.lora_{x}.weight": torch.ones(2048, 1)
            for x in ("up", "down")
        }
        keys["lora_unet_input_blocks_9_9_attn2_to_k.lora_down.weight"] = torch.ones(1, 2048)
        read_lora(PIPES[model], write(keys, file.parent / "xl.safetensors"), "it")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[", "adapter_config.json does not say how the LoRA is scaled"),
        ("[1]", "adapter_config.json does not say how the LoRA is scaled"),
        ('{"r": 4}', r"does not say how the LoRA is scaled \(KeyError: 'lora_alpha'\)"),
        ('{"lora_alpha": "four"}', "does not say how the LoRA is scaled"),
        ('{"lora_alpha": Infinity}', "does not say how the LoRA is scaled .*an alpha of inf"),
        ('{"lora_alpha": 4, "alpha_pattern": {"x": NaN}}', "an alpha of nan"),
        ('{"lora_alpha": 4, "init_lora_weights": "lora_ga"}', "changes the base's weights"),
        ("version https://git-lfs.github.com/spec/v1", "adapter_config.json .*git lfs pull"),
        ('{"lora_alpha": 4, "peft_type": "LOHA"}', "is no plain LoRA, but LOHA"),
        ('{"lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}', "changes the base's weights"),
    ],
)
def test_a_peft_config_that_does_not_tell_the_scale_is_refused(config, said, one):
    _, file = one("peft")
    (file.parent / "adapter_config.json").write_text(config)
    with pytest.raises(UserError, match=f"^it: .*{said}"):
        read_lora_file(file, "it")


def test_a_header_that_does_not_tell_the_scale_is_refused(one):
    _, file = one("diffusers")
    write(load_file(file), file.with_name("x.safetensors"), {HEADER: "["})
    with pytest.raises(UserError, match=r"^it: its header does not say how the LoRA is scaled"):
        read_lora_file(file.with_name("x.safetensors"), "it")


def test_rank_stabilised_scales_by_the_root_of_the_rank(one, model):
    written, file = one("peft", ranks=(4,), alphas=(8,))
    config = json.loads((file.parent / "adapter_config.json").read_text())
    (file.parent / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    deltas = read_lora(PIPES[model], file, "it").parts["unet"]
    assert deltas.keys() == written["unet"].keys() and {d.scale for d in deltas.values()} == {4.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3226184\n",
            "git lfs pull",
        ),
        (b"", "cannot be read .*: give a whole .safetensors file"),
        (b"<html><body>Not found</body></html>", "cannot be read"),
        (b"\xff" * 64, "cannot be read"),
    ],
)
def test_what_is_no_safetensors_file_is_one_line(content, said, tmp_path):
    file = tmp_path / "lora.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^it: lora.safetensors .*{said}"):
        read_lora_file(file, "it")
