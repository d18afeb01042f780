"""Train the embedded tiny models from nothing, on 2 CPU cores in minutes.

    python scripts/pretrain_tiny.py sd
    python scripts/pretrain_tiny.py sdxl
    python scripts/pretrain_tiny.py editor --help   (scripts/pretrain_editor.py; from sd)
    python scripts/pretrain_tiny.py vlm --help      (scripts/pretrain_vlm.py; from sd and editor;
                                                     actor likewise)

make the committed pipelines again. First the VAE, then UNet and text encoders together with
epsilon prediction (min-SNR weighting, arXiv 2303.09556, gamma 5). Two things about the corpus
make it the base that SRRL needs. Most pairs of colour and shape are conventional, so the prompts
with two unconventional pairs are rarely drawn right. And in the last part of the training
captions are wrong with probability `--caption-noise`, so, as with captions scraped from the web,
the model trusts its prompt only halfway and classifier-free guidance makes up for it: that is
what reflection feeds on.
"""

import srrl  # noqa: F401, I001  first: it quiets what importing transformers would log

import argparse
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import Tensor

from rewards.shapes import ShapesVerifier
from srrl.shapes.pipeline import (
    MAX_TOKENS,
    TINY_SD,
    TINY_SDXL,
    build_tiny_sd,
    build_tiny_sdxl,
)
from srrl.shapes.pretraining import Training, denoising_loss
from srrl.shapes.scenes import SIZE, all_scenes, render

UNCONVENTIONAL_WEIGHT = 0.08  # of each unconventional pair in the corpus, against 1


class Corpus:
    """An endless supply of captioned pictures in which unconventional pairs are rare."""

    def __init__(self, seed: int):
        self.scenes = all_scenes()
        self.weights = torch.tensor([UNCONVENTIONAL_WEIGHT**s.unconventional for s in self.scenes])
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Pictures [n, 3, 32, 32] in [-1, 1] and the indices [n] of their scenes."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=self.generator)
        pictures = render([self.scenes[i] for i in which.tolist()], self.generator)
        return pictures * 2 - 1, which


def train_vae(vae, corpus: Corpus, steps: int, batch: int = 32, lr: float = 2e-3) -> None:
    training = Training("vae", vae.parameters(), steps, lr)
    for _ in range(steps):
        pictures, _ = corpus.draw(batch)
        posterior = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        decoded = vae.decode(posterior.sample(corpus.generator)).sample
        mse = F.mse_loss(decoded, pictures)
        loss = mse + 0.2 * F.l1_loss(decoded, pictures) + 3e-4 * posterior.kl().mean() / 256
        training.step(loss)
        training.say(psnr=-10 * math.log10(mse.item() / 4))


@torch.no_grad()
def latent_bank(vae, corpus: Corpus, count: int) -> tuple[Tensor, Tensor]:
    """Scaled latents [N, 4, 8, 8] and scene indices [N]; sets the VAE's scaling factor."""
    latents, which = [], []
    for _ in range(count // 500):
        pictures, scenes = corpus.draw(500)
        latents.append(vae.encode(pictures).latent_dist.mean)
        which.append(scenes)
    bank = torch.cat(latents)
    vae.register_to_config(scaling_factor=round(1 / bank.std().item(), 5))
    return bank * vae.config.scaling_factor, torch.cat(which)


class SDText:
    """The text conditioning of StableDiffusionPipeline's UNet."""

    def __init__(self, pipe: DiffusionPipeline, captions: list[str]):
        self.tokens = tokenize(pipe.tokenizer, [*captions, ""])
        self.encoder, self.modules = pipe.text_encoder, [pipe.text_encoder]

    def __call__(self, caption: Tensor) -> dict:
        """The UNet's keywords for caption indices [B]; the index past the last is no caption."""
        return {"encoder_hidden_states": self.encoder(self.tokens[caption])[0]}


class SDXLText:
    """The text conditioning of StableDiffusionXLPipeline's UNet; no caption is all zeros."""

    def __init__(self, pipe: DiffusionPipeline, captions: list[str]):
        self.modules = [pipe.text_encoder, pipe.text_encoder_2]
        self.tokens = [tokenize(t, [*captions, ""]) for t in (pipe.tokenizer, pipe.tokenizer_2)]
        self.none = len(captions)
        self.sizes = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE])  # original, crop, target

    def __call__(self, caption: Tensor) -> dict:
        encoded = [
            encoder(tokens[caption], output_hidden_states=True)
            for encoder, tokens in zip(self.modules, self.tokens, strict=True)
        ]
        given = (caption != self.none).float()
        hidden = torch.cat([e.hidden_states[-2] for e in encoded], dim=-1)
        return {
            "encoder_hidden_states": hidden * given[:, None, None],
            "added_cond_kwargs": {
                "text_embeds": encoded[1].text_embeds * given[:, None],
                "time_ids": self.sizes.expand(len(caption), -1),
            },
        }


def tokenize(tokenizer, captions: list[str]) -> Tensor:
    """int64 [N, MAX_TOKENS]"""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


def train_unet(pipe, text, corpus: Corpus, args: argparse.Namespace, batch: int = 64) -> None:
    latents, which = latent_bank(pipe.vae, corpus, args.latents)
    parameters = [p for m in (pipe.unet, *text.modules) for p in m.parameters()]
    training = Training("unet", parameters, args.unet_steps, args.lr)
    ema = EMAModel(parameters, decay=0.998, use_ema_warmup=False)
    noising = DDIMScheduler.from_config(pipe.scheduler.config)
    generator = corpus.generator
    average = 0.0
    for step in range(args.unet_steps):
        rows = torch.randint(len(latents), (batch,), generator=generator)
        x0 = latents[rows].contiguous(memory_format=torch.channels_last)
        caption = which[rows]
        noise_now = args.caption_noise if step >= args.clean_part * args.unet_steps else 0.0
        wrong = torch.rand(batch, generator=generator) < noise_now
        other = which[torch.randint(len(which), (batch,), generator=generator)]
        caption = torch.where(wrong, other, caption)
        caption[torch.rand(batch, generator=generator) < args.caption_drop] = len(corpus.scenes)
        loss = denoising_loss(
            lambda noisy, t, c=caption: pipe.unet(noisy, t, **text(c)).sample,
            x0,
            noising,
            generator,
        )
        training.step(loss)
        ema.step(parameters)
        average = 0.98 * average + 0.02 * loss.item() if step else loss.item()
        training.say(loss=average)
        if step % 500 == 499:
            ema.store(parameters)
            ema.copy_to(parameters)
            print(
                f"  verifier at guidance 1 and 5: {sample_score(pipe, 1):.3f}, "
                f"{sample_score(pipe, 5):.3f}",
                flush=True,
            )
            ema.restore(parameters)
    ema.copy_to(parameters)


def sample_score(pipe, guidance: float, n: int = 96) -> float:
    """Mean verifier score of n unconventional prompts, 10 deterministic steps each."""
    prompts = [s.prompt for s in all_scenes() if s.unconventional == 2][:: 192 // n]
    published = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(published.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    pixels = pipe(
        prompts,
        num_inference_steps=10,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    pipe.scheduler = published
    return ShapesVerifier().score((pixels * 255).round().to(torch.uint8), prompts).mean().item()


@torch.no_grad()
def report(pipe, corpus: Corpus) -> None:
    """Verifier scores of rendered and reconstructed scenes, and of a few generated ones."""
    verifier = ShapesVerifier()
    prompts = [s.prompt for s in corpus.scenes]
    pictures = render(corpus.scenes, corpus.generator) * 2 - 1
    decoded = pipe.vae.decode(pipe.vae.encode(pictures).latent_dist.mean).sample
    for name, shown in (("rendered", pictures), ("reconstructed", decoded)):
        pixels = ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        print(f"verifier on {name} scenes: {verifier.score(pixels, prompts).mean():.3f}")
    print("for guidance and reflection: python scripts/evaluate.py")


MODELS = {"sd": (build_tiny_sd, SDText, TINY_SD), "sdxl": (build_tiny_sdxl, SDXLText, TINY_SDXL)}


def main() -> None:
    if sys.argv[1:2] == ["editor"]:  # of another kind, with arguments of its own
        from pretrain_editor import main as pretrain_editor

        return pretrain_editor(sys.argv[2:])
    if sys.argv[1:2] in (["vlm"], ["actor"]):
        from pretrain_vlm import main as pretrain_vlm

        return pretrain_vlm(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, help="folder to write; the committed one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=1600)
    parser.add_argument("--unet-steps", type=int, default=3000)
    parser.add_argument("--latents", type=int, default=24_000, help="pictures, in steps of 500")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak rate of UNet and text encoder")
    parser.add_argument("--caption-noise", type=float, default=0.7)
    parser.add_argument("--clean-part", type=float, default=0.65, help="of the steps, before it")
    parser.add_argument("--caption-drop", type=float, default=0.1)
    args = parser.parse_args()

    start = time.time()
    build, text_of, folder = MODELS[args.model]
    pipe, out = build(args.seed), args.out or folder
    for module in (pipe.vae, pipe.unet):
        module.to(memory_format=torch.channels_last)
    train_vae(pipe.vae, Corpus(args.seed), args.vae_steps)
    pipe.vae.requires_grad_(False)
    text = text_of(pipe, [s.prompt for s in all_scenes()])
    train_unet(pipe, text, Corpus(args.seed), args)
    report(pipe, Corpus(args.seed))
    for module in (pipe.vae, pipe.unet):
        module.to(memory_format=torch.contiguous_format)
    pipe.to(dtype=torch.float16).save_pretrained(out)
    print(f"wrote {out} after {(time.time() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
