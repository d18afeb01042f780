"""What RL-RIG takes, before it runs: its parts' weights, and a picture's bill by way of drawing.

The diffuser's and the editor's calls are counted on their own networks without numbers, as a
training's are (imagined.py). Of the VLM the weights are counted; its operations are two for each
weight and token, as for any transformer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from ml_collections import ConfigDict
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from srrl.budget import nfe_per_step
from srrl.checks import WAYS
from srrl.config import resolve
from srrl.ddim import make_schedule
from srrl.errors import UserError
from srrl.measure.bill import CONTEXT, GIB, SLACK
from srrl.measure.cards import Card
from srrl.measure.counting import Count, make_fake, size_of
from srrl.measure.show import columns, tflop
from srrl.models.architectures import blank_editor, blank_pipeline
from srrl.models.conditioning import Conditioning
from srrl.models.instruct import Instruction, InstructPolicy, evaluations_a_step
from srrl.models.policy import DTYPES, Policy
from srrl.models.random_vlm import LANGUAGE, NAMED, known_vlm, vlm_config
from srrl.rig.seeing import EMBEDDED, TINY_VLM
from srrl.rig.ways import first_evaluations

TOKENS = 120  # of a request's text and a short answer, about
SMALLER = "a smaller sample.micro_batch, or Qwen/Qwen2.5-VL-3B-Instruct"


@dataclass(frozen=True)
class Part:
    """A model: its name, parameters, bytes, and the most bytes that one of its calls takes."""

    name: str
    parameters: int
    size: int
    call: int


@dataclass(frozen=True)
class Drawing:
    """A diffuser or an editor: the part, the side of its pictures, and for one the operations of an
    evaluation, of encoding and of decoding."""

    part: Part
    side: int
    evaluation: float
    encoding: float
    decoding: float


def drawing(
    name: str, pipe: DiffusionPipeline, c: ConfigDict, steps: ConfigDict, cuda: bool
) -> Drawing:
    """Counted on the network's own calls; steps: of what they are."""
    dtype = DTYPES[c.mixed_precision] if cuda else torch.float32
    modules = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    for module in modules:
        nn.Module.to(module, dtype)
    edits = pipe.unet.config.in_channels > pipe.vae.config.latent_channels
    policy = (InstructPolicy if edits else Policy)(
        pipe,
        make_schedule(pipe.scheduler.config, steps.num_steps, steps.eta),
        micro_batch=c.sample.micro_batch,
        decode_batch=c.sample.decode_batch,
        resolution=c.sample.resolution,
        dtype=dtype,
        device="meta",
    )
    if isinstance(policy, InstructPolicy):
        policy.image_guidance = c.editor.image_guidance
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in modules:
            make_fake(module)
        policy.device = torch.device("cpu")
        policy.schedule = policy.schedule.to(policy.device)
        policy.pads = False
        (text, pooled), _ = policy.encoder._encode("a prompt")
        n = c.sample.micro_batch
        texts, pooleds = (torch.zeros(n, *t.shape) for t in (text, pooled))
        x = torch.zeros(n, *policy.latent_shape)
        given = Conditioning(texts, texts, pooleds, pooleds)
        if edits:
            given = Instruction(**vars(given), picture=x)
        weights = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        index = torch.zeros(n, dtype=torch.long)
        with Count([*weights, x, *vars(given).values()]) as predicted:
            policy.predict(x, index, given, steps.guidance_scale)
        with Count([*weights, x]) as decoded:
            policy.pixels(x[: c.sample.decode_batch])
        with Count(weights) as encoded:
            policy.see(torch.zeros(c.sample.decode_batch, 3, *policy.image_size))
    found = {id(p): p for m in modules for p in m.parameters()}.values()
    part = Part(
        name,
        sum(p.numel() for p in found),
        size_of(found),
        max(count.peak for count in (predicted, decoded, encoded)),
    )
    coded = (count.flops / c.sample.decode_batch for count in (encoded, decoded))
    return Drawing(part, policy.image_size[0], predicted.flops / policy.nfe, *coded)


def vlm_part(model: str, dtype: torch.dtype) -> tuple[Part, int]:
    """A VLM's weights, and the side in pixels of what is one token; raises UserError for a hub name
    whose configuration is not known here."""
    folder = TINY_VLM if model == EMBEDDED else Path(resolve(model))
    published = known_vlm(model)
    if not published and not folder.is_dir():
        known = ", ".join(NAMED.format(name) for name in LANGUAGE)
        raise UserError(f"the VLM {model!r}: not known here: known are {known} and folders")
    try:
        config = vlm_config(published) if published else AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            network = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the VLM {model!r} is none that is read here ({reason})") from None
    count = sum(p.numel() for p in {id(p): p for p in network.parameters()}.values())
    seen = config.vision_config
    part = Part(model, count, count * torch.finfo(dtype).bits // 8, 0)
    return part, seen.patch_size * seen.spatial_merge_size


def page(c: ConfigDict, cards: Sequence[Card], cuda: bool) -> str:
    """The parts, a picture's bill and what it fits, as text; cuda: on a GPU."""
    dtype = DTYPES[c.mixed_precision] if cuda else torch.float32
    diffuser = drawing(
        c.pretrained.model, blank_pipeline(resolve(c.pretrained.model)), c, c.sample, cuda
    )
    instruct = c.editor.kind == "instruct"
    if instruct:
        editor = drawing(c.editor.model, blank_editor(resolve(c.editor.model)), c, c.editor, cuda)
    else:
        name = f"{c.pretrained.model}, to edit"
        editor = drawing(name, blank_pipeline(resolve(c.pretrained.model)), c, c.editor, cuda)
    vlms = {model: vlm_part(model, dtype) for model in (c.checker.model, c.actor.model)}
    parts = [diffuser.part, editor.part, *(part for part, _ in vlms.values())]
    if instruct and any(way.startswith("inversion") for way in c.evaluate.ways):
        parts.append(replace(diffuser.part, name="the diffuser again, for inversion"))
    rows = [("part", "parameters", "GiB")]
    rows += [(p.name, f"{p.parameters:,}", f"{p.size / GIB:.2f}") for p in parts]
    peak = sum(p.size for p in parts) + max(p.call for p in parts)
    rows.append(("all, with the largest call of the networks that draw", "", f"{peak / GIB:.2f}"))
    lines = [f"{c.run_name}: computed, nothing was run", *columns(rows)]
    lines.append(f"not counted: the judge {', '.join(c.reward.models)}")

    def operations(who: str, tokens: int) -> float:
        """Of a call about a picture with so many tokens of text."""
        part, side = vlms[c[who].model]
        seen = max(1, round((c[who].side or diffuser.side) / side)) ** 2
        return 2 * part.parameters * (seen + tokens)

    look, write = operations("checker", TOKENS), operations("actor", TOKENS + c.actor.max_tokens)
    first, edit = first_evaluations(c), edit_evaluations(c)
    table = [("a picture, at most", "evaluations", "VLM calls", "TFLOP")]
    draw = first * diffuser.evaluation + diffuser.decoding
    for way in WAYS:
        rounds = 0 if way == "once" else c.loop.rounds
        if way in ("again", "best"):
            each, flops = first, draw
        elif way.startswith("inversion") and instruct:
            each = inversion_evaluations(c)
            flops = each * diffuser.evaluation + diffuser.encoding + diffuser.decoding
        else:
            each = edit
            flops = edit * editor.evaluation + editor.encoding + editor.decoding
        writes = rounds * way.endswith("actor")
        total = draw + rounds * flops + (1 + rounds) * look + writes * write
        calls = 1 + rounds + writes
        table.append((way, f"{first + rounds * each}", f"{calls}", tflop(total / 1e12)))
    lines += columns(table)
    for card in cards:
        room = (card.gib * GIB - CONTEXT) / (1 + SLACK)
        name = f"{card.name} ({card.gib:.1f} GiB)"
        lines.append(f"fits {name}" if peak <= room else f"does not fit {name}: {SMALLER}")
    return "\n".join(lines)


def inversion_evaluations(c: ConfigDict) -> int:
    e = c.editor
    steps = e if e.kind == "inversion" else c.sample
    there_and_back = nfe_per_step(steps.guidance_scale) + nfe_per_step(e.inversion_guidance)
    return (e.depth or steps.num_steps) * there_and_back


def edit_evaluations(c: ConfigDict) -> int:
    e = c.editor
    if e.kind == "inversion":
        return inversion_evaluations(c)
    return e.num_steps * evaluations_a_step(e.guidance_scale, e.image_guidance)
