"""Train the embedded editor, an InstructPix2Pix, from the embedded diffuser, on CPU in minutes.

    python scripts/pretrain_tiny.py editor

makes srrl/shapes/tiny_editor again. It learns from pictures, edit prompts and what these make of
the pictures (srrl/shapes/edits.py); a prompt of the diffuser asks for no change. Scenes of held-out
prompts are in neither. Then it says how often one edit of a failed picture mends it, by who wrote
the edit prompt.
"""

import srrl  # noqa: F401, I001  first: it quiets what importing transformers would log

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from srrl.models.loading import load_pipeline
from srrl.prompts import load_prompts
from srrl.shapes.edits import edit_lessons, expert, naive, repairs
from srrl.shapes.lessons import HELDOUT, heldout
from srrl.shapes.pipeline import EDIT_TOKENS, TINY_EDITOR, TINY_SD, build_tiny_editor
from srrl.shapes.pretraining import (
    EDITING,
    Source,
    Training,
    denoising_loss,
    drawn,
    prompts_without,
    tiny_editor,
)
from srrl.shapes.reader import read, truths
from srrl.shapes.scenes import parse

BATCH = 48


def lessons(count: int, pictured: int, seed: int) -> tuple[Tensor, list[str], Tensor]:
    """So many sources, edit prompts and targets, of renders and of the diffuser's pictures."""
    avoid = heldout()
    prompts = prompts_without(avoid, pictured)
    shown = Source.without(avoid, drawn(prompts, seed), prompts)
    rng, parts, left = random.Random(seed), [], count
    while left > 0:  # about a third of what is tried becomes a lesson
        some = edit_lessons(2_000, shown.pictures, shown.seen, shown.prompts, avoid, rng)
        parts.append(some)
        left -= len(some[1])
        print(f"lessons {count - left}/{count}", flush=True)
    sources, texts, targets = zip(*parts, strict=True)
    every = [text for some in texts for text in some]
    return torch.cat(sources)[:count], every[:count], torch.cat(targets)[:count]


def train(pipe, given: tuple[Tensor, list[str], Tensor], args: argparse.Namespace) -> None:
    """UNet and text encoder, a share of 5% each without both, without the picture, and without
    the words (InstructPix2Pix, section 3.2.1)."""
    sources, texts, targets = given
    with torch.no_grad():
        posteriors = [
            [pipe.vae.encode(x / 127.5 - 1).latent_dist.mode() for x in pictures.split(256)]
            for pictures in (sources, targets)
        ]
    picture, x0 = map(torch.cat, posteriors)
    x0 = x0 * pipe.vae.config.scaling_factor
    unique = sorted(set(texts))
    tokens = pipe.tokenizer(
        [*unique, ""], padding="max_length", max_length=EDIT_TOKENS, return_tensors="pt"
    ).input_ids
    number = {text: i for i, text in enumerate(unique)}
    which = torch.tensor([number[text] for text in texts])
    parameters = [p for m in (pipe.unet, pipe.text_encoder) for p in m.parameters()]
    training = Training("editor", parameters, args.steps, args.lr, warm_up=100)
    ema = EMAModel(parameters, decay=0.998, use_ema_warmup=False)
    noising = DDIMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(args.seed)
    average = None
    for _ in range(args.steps):
        rows = torch.randint(len(texts), (BATCH,), generator=generator)
        u = torch.rand(BATCH, generator=generator)
        words, shown = which[rows], picture[rows].clone()
        words[u < 0.10] = len(unique)
        shown[(u < 0.05) | (u > 0.95)] = 0.0

        def predict(noisy: Tensor, t: Tensor, words=words, shown=shown) -> Tensor:
            text = pipe.text_encoder(tokens[words])[0]
            return pipe.unet(torch.cat([noisy, shown], 1), t, text).sample

        loss = denoising_loss(predict, x0[rows], noising, generator)
        training.step(loss)
        ema.step(parameters)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        training.say(loss=average)
    ema.copy_to(parameters)


def report(folder: Path, count: int, seed: int) -> None:
    """Of the diffuser's failed pictures for held-out prompts, those that show all after one edit,
    and the share of requirements that hold, by who wrote the edit prompt."""
    prompts = (load_prompts(HELDOUT) * (2 * count // 100 + 1))[: 2 * count]
    pictures, rng = drawn(prompts, seed + 1), random.Random(seed)
    scenes, seen = [parse(p) for p in prompts], read(pictures)
    failed = [i for i, s in enumerate(seen) if repairs(scenes[i], s)][:count]
    pictures = pictures[failed]
    scenes, seen = [scenes[i] for i in failed], [seen[i] for i in failed]
    editor = tiny_editor(folder)
    writers = {
        "the expert": [expert(s, x) for s, x in zip(scenes, seen, strict=True)],
        "the expert, one change": [repairs(s, x)[0] for s, x in zip(scenes, seen, strict=True)],
        "naive": [naive(s, x, rng) for s, x in zip(scenes, seen, strict=True)],
        "another picture's expert": [
            expert(s, x) for s, x in zip(scenes[1:] + scenes[:1], seen[1:] + seen[:1], strict=True)
        ],
        "the plain prompt": [s.prompt for s in scenes],
    }
    print(f"one edit of {len(failed)} failed pictures, guidance {EDITING.guidance_scale}:")
    for name, texts in writers.items():
        edits = editor.edit(
            pictures, [s.prompt for s in scenes], texts, seed=seed, numbers=[*range(len(texts))]
        )
        held = [truths(x, s) for x, s in zip(read(edits.images), scenes, strict=True)]
        whole = sum(map(all, held)) / len(held)
        share = sum(map(sum, held)) / (3 * len(held))
        print(f"  {name:26s} all {whole:.3f}  share {share:.3f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder to write; the committed one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lessons", type=int, default=32_000)
    parser.add_argument("--drawn", type=int, default=3_040, help="pictures of the diffuser")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak rate")
    parser.add_argument("--failed", type=int, default=200, help="pictures to try it on")
    args = parser.parse_args(argv)
    start, out = time.monotonic(), args.out or TINY_EDITOR
    torch.manual_seed(args.seed)
    sd = load_pipeline(str(TINY_SD), dtype=torch.float32)
    pipe = build_tiny_editor(sd, args.seed)
    pipe.vae.requires_grad_(False)
    for module in (pipe.vae, pipe.unet):
        module.to(memory_format=torch.channels_last)
    train(pipe, lessons(args.lessons, args.drawn, args.seed), args)
    for module in (pipe.vae, pipe.unet):
        module.to(memory_format=torch.contiguous_format)
    pipe.to(dtype=torch.float16).save_pretrained(out)
    report(out, args.failed, args.seed)
    print(f"wrote {out} after {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
