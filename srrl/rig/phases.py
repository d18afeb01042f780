"""The phases of Reflection-GRPO (arXiv 2602.19974): the actor's words and the editor's steps."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor

from srrl.batch import Batch, pairs_objective
from srrl.learner import Learner
from srrl.models.vlm import VLM
from srrl.ppo import Objective, clipped_objective
from srrl.rig.editors import Editor
from srrl.rig.forms import read_edit
from srrl.rig.grpo import Groups, likeness
from srrl.rig.loop import Asked, acting
from srrl.rig.setup import Parts
from srrl.rig.trainer import PhaseRun
from srrl.rig.walk import States, Tried
from srrl.rounds import generator
from srrl.run.curves import Panel
from srrl.run.distributed import gather_rows


@dataclass(frozen=True)
class Words:
    """n completions to train on: state int64 [n] of images uint8 [S, 3, H, W] and requests; tokens
    int64, mask bool, log_probs float32 [n, L]; advantages float32 [n]; mean_tokens of one.

    shape: rows and tokens that each call of the VLM is padded to, in which half precision rounds
    the same whatever else is in it; None where that does not matter.
    """

    images: Tensor
    requests: list[str]
    state: Tensor
    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    advantages: Tensor
    mean_tokens: float
    shape: tuple[int, int] | None = None

    def again(self, vlm: VLM, rows: Tensor, temperature: float) -> Tensor:
        """The log-probs float32 [B, L] of some completions int64 [B], under the VLM as it is."""
        count = len(rows)
        if self.shape and count < self.shape[0]:
            rows = torch.cat([rows, rows[-1:].expand(self.shape[0] - count)])
        state = self.state[rows]
        longest = int(self.mask[rows].sum(1).max())
        found = vlm.log_probs(
            self.images[state],
            [self.requests[i] for i in state.tolist()],
            self.tokens[rows, :longest],
            self.mask[rows, :longest],
            temperature,
            self.shape[1] if self.shape else 0,
        )
        return F.pad(found[:count], (0, self.tokens.shape[1] - longest))


def words_objective(
    c: ConfigDict, vlm: VLM, temperature: float, words: Words, items: Tensor
) -> Objective:
    """The clipped objective of some completions int64 [B, 1], over their tokens."""
    rows, device, reference = items[:, 0], vlm.device, None
    if c.kl_weight:
        with torch.no_grad(), vlm.bare():
            reference = words.again(vlm, rows, temperature)
    return clipped_objective(
        words.again(vlm, rows, temperature),
        words.log_probs[rows].to(device),
        words.advantages[rows].to(device),
        c.clip_range,
        clip_range_high=c.clip_range_high,
        mask=words.mask[rows].to(device),
        mean_tokens=words.mean_tokens,
        reference_log_prob=reference,
        kl_weight=c.kl_weight,
    )


def padded(values: Tensor, length: int) -> Tensor:
    """[B, length] of [B, L], zeros on the right, on the CPU; of bool int64."""
    values = values.long() if values.dtype == torch.bool else values
    return F.pad(values.cpu(), (0, length - values.shape[1]))


class ActorRun(PhaseRun):
    """Phase 1: the actor's LoRA, by groups of completions of one state; the editor is fixed."""

    name = "actor"
    panels = (
        *PhaseRun.panels,
        Panel("completions", {"form": "usable", "distinct": "distinct"}, counts=False),
    )

    def __init__(self, config: ConfigDict, parts: Parts, *given: Any):
        """Of what a PhaseRun is made of but its trainee, which is one of the parts."""
        self.actor = parts.actor_for(parts.editor)
        self.vlm = vlm = self.actor.vlm
        super().__init__(config, parts, vlm, *given)
        objective = partial(words_objective, self.settings, vlm, self.actor.temperature)
        self.learner = Learner(config, vlm, self.accelerator, objective)

    def attempt(self, asked: Asked) -> Tried:
        n, g, longest = len(asked.wishes), self.settings.group, self.actor.max_tokens
        every = torch.arange(n).repeat_interleave(g).tolist()
        requests = self.actor.requests(asked.prompts, asked.failed)
        drawn = [
            generator(asked.seed, asked.round, number, branch, 0, "words")
            for number in asked.numbers
            for branch in range(g)
        ]
        with self.timed("write"):
            written = self.actor.complete(asked.images[every], [requests[i] for i in every], drawn)
        own = {
            name: torch.cat([padded(getattr(part, name), longest) for part in written]).unflatten(
                0, (n, g)
            )
            for name in ("tokens", "mask", "log_probs")
        }
        texts = [text for part in written for text in part.texts]
        prompts = [asked.prompts[i] for i in every]
        edits = [read_edit(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        first: dict[tuple, int] = {}
        same = [
            first.setdefault((i, e.text), k)
            for k, (i, e) in enumerate(zip(every, edits, strict=True))
        ]
        images = asked.images[every].clone()
        rows = [k for k, edit in enumerate(edits) if edit.text and same[k] == k]
        if rows:
            with self.timed("edit"):
                images[rows] = self.parts.editor.edit(
                    images[rows],
                    [prompts[k] for k in rows],
                    [edits[k].text or "" for k in rows],
                    seed=asked.seed,
                    numbers=[asked.numbers[every[k]] for k in rows],
                    stage=asked.round,
                ).images
        return Tried(list(range(n)), requests, images[same], edits, same, own)

    def update(self, stage: int, states: States, groups: Groups, index: Tensor) -> dict[str, float]:
        # transformers recomputes activations in training alone; nothing is dropped out
        self.vlm.network.train(self.config.train.gradient_checkpointing)
        measured = super().update(stage, states, groups, index)
        self.vlm.network.eval()
        return measured

    def nothing(self) -> dict[str, Tensor]:
        shape = (0, self.settings.group, self.actor.max_tokens)
        kinds = {"tokens": torch.int64, "mask": torch.int64, "log_probs": torch.float32}
        return {name: torch.zeros(shape, dtype=kind) for name, kind in kinds.items()}

    def rewarded(self, states: States) -> Tensor:
        """s + lambda_form form."""
        form = [[float(text is not None) for text, _, _ in told["edits"]] for told in states.told]
        shape = (len(states), self.settings.group)
        return states.share + self.settings.form_weight * torch.tensor(form).view(shape)

    def batch(self, states: States, groups: Groups, index: Tensor) -> Words:
        g = self.settings.group
        state = index // g
        tokens, mask, log_probs = (
            states.own[k].flatten(0, 1)[index] for k in ("tokens", "mask", "log_probs")
        )
        requests = [told["request"] for told in states.told]
        words = Words(
            states.images,
            requests,
            state,
            tokens,
            mask.bool(),
            log_probs,
            groups.advantages.flatten()[index],
            mask.sum(1).float().mean().item(),
        )
        return words if self.exact else self.recomputed(words)

    @property
    def exact(self) -> bool:
        """Are log-probs of the writing, token by token, those of whole completions to float32's
        rounding?"""
        rounds = self.vlm.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
        return self.vlm.dtype == torch.float32 and not rounds

    @torch.no_grad()
    def recomputed(self, words: Words) -> Words:
        """With the log-probs of whole completions, in calls of the shape that the update's have:
        each process computes its share of them."""
        vlm, n, counted = self.vlm, len(words.state), self.vlm.nfe
        asked = vlm.talk.rows(words.requests, vlm.visual_tokens(vlm.look(words.images[:1])))
        lengths = torch.tensor([len(row) for row in asked])[words.state] + words.mask.sum(1)
        # One more than the longest: a call without padding takes other kernels.
        shape = (self.config.train.micro_batch, int(lengths.max()) + 1)
        words = replace(words, shape=shape)
        own = torch.tensor(list(self.local(n)), dtype=torch.int64)
        parts = [
            words.again(vlm, rows, self.actor.temperature).cpu()
            for rows in own.split(shape[0])
            if len(rows)
        ]
        values = torch.cat(parts) if parts else words.log_probs[:0]
        vlm.nfe = counted
        return replace(words, log_probs=gather_rows(self.accelerator, values, own, n))


class EditorRun(PhaseRun):
    """Phase 2: the editor's LoRA, by groups of edits of one picture under one edit prompt, which
    the actor, now fixed, has written."""

    name = "editor"
    panels = (*PhaseRun.panels, Panel("completions", {"form": "usable"}, counts=False))

    def __init__(self, config: ConfigDict, parts: Parts, *given: Any):
        """Of what a PhaseRun is made of but its trainee, which is one of the parts."""
        policy = parts.editor.policy
        super().__init__(config, parts, policy, *given)
        own = self.settings
        self.trained_steps = own.trained_steps
        sampling = replace(parts.editor.settings, branches=own.group, skip_last=own.skip_last)
        self.editor = Editor(policy, sampling)
        self.write = acting(parts.actor_for(parts.editor))
        objective = partial(pairs_objective, sampling, own.clip_range, policy)
        self.learner = Learner(config, policy, self.accelerator, objective)

    def attempt(self, asked: Asked) -> Tried:
        g = self.settings.group
        with self.timed("write"):
            edits = self.write(asked)
        rows = [i for i, edit in enumerate(edits) if edit.text]
        refused = [edit.reason for edit in edits if not edit.text]
        if not rows:
            return Tried([], [], asked.images[:0], [], [], self.nothing(), refused)
        some = asked.rows(rows)
        with self.timed("edit"):
            made = self.editor.edit(
                some.images,
                some.prompts,
                [edits[i].text or "" for i in rows],
                seed=asked.seed,
                numbers=some.numbers,
                stage=asked.round,
                trained_steps=self.trained_steps,
                apart=True,
            )
        own = {
            "latents": made.sampled.latents.unflatten(0, (-1, g)),
            "log_probs": made.sampled.log_probs.unflatten(0, (-1, g)),
            "likeness": likeness(some.images.repeat_interleave(g, 0), made.images).view(-1, g),
        }
        every = [edits[i] for i in rows for _ in range(g)]
        alone = list(range(len(every)))
        return Tried(rows, [], made.images, every, alone, own, refused)

    def nothing(self) -> dict[str, Tensor]:
        policy, m = self.editor.policy, self.trained_steps
        shapes = {"latents": (m + 1, *policy.latent_shape), "log_probs": (m,)}
        g, device = self.settings.group, policy.device
        own = {name: torch.zeros(0, g, *shape, device=device) for name, shape in shapes.items()}
        return own | {"likeness": torch.zeros(0, g)}

    def rewarded(self, states: States) -> Tensor:
        """s + lambda_likeness likeness."""
        return states.share + self.settings.likeness_weight * states.own["likeness"]

    def batch(self, states: States, groups: Groups, index: Tensor) -> Batch:
        policy, state = self.editor.policy, index // self.settings.group
        kept = state.unique()
        texts = [states.told[i]["edits"][0][0] for i in kept.tolist()]
        conditioning = self.editor.condition(states.images[kept], texts)
        at = torch.searchsorted(kept, state).to(policy.device)
        latents, log_probs = (
            states.own[name].flatten(0, 1)[index.to(policy.device)]
            for name in ("latents", "log_probs")
        )
        advantages = groups.advantages.flatten()[index].to(policy.device)
        return Batch(latents, log_probs, advantages, conditioning.rows(at))
