"""The phases of Reflection-GRPO (arXiv 2602.19974): the actor's words and the editor's steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward
from srrl.batch import Batch, pairs_objective
from srrl.learner import Learner
from srrl.models.vlm import VLM
from srrl.ppo import Objective, clipped_objective
from srrl.rig.editors import Editor
from srrl.rig.forms import read_edit
from srrl.rig.grpo import Groups
from srrl.rig.loop import Asked, acting
from srrl.rig.setup import Parts
from srrl.rig.trainer import PhaseRun
from srrl.rig.walk import States, Tried
from srrl.rollout import generator
from srrl.run.tracking import Tracker


@dataclass(frozen=True)
class Words:
    """n completions to train on: state int64 [n] of images uint8 [S, 3, H, W] and requests; tokens
    int64, mask bool, log_probs float32 [n, L]; advantages float32 [n]; mean_tokens of one."""

    images: Tensor
    requests: list[str]
    state: Tensor
    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    advantages: Tensor
    mean_tokens: float


def words_objective(
    c: ConfigDict, vlm: VLM, temperature: float, words: Words, items: Tensor
) -> Objective:
    """The clipped objective of some completions int64 [B, 1], over their tokens."""
    rows = items[:, 0]
    longest = int(words.mask[rows].sum(1).max())
    mask, tokens = words.mask[rows, :longest], words.tokens[rows, :longest]
    given = (
        words.images[words.state[rows]],
        [words.requests[i] for i in words.state[rows].tolist()],
        tokens,
        mask,
        temperature,
    )
    reference = None
    if c.kl_weight:
        with torch.no_grad(), vlm.bare():
            reference = vlm.log_probs(*given)
    device = vlm.device
    return clipped_objective(
        vlm.log_probs(*given),
        words.log_probs[rows, :longest].to(device),
        words.advantages[rows].to(device),
        c.clip_range,
        clip_range_high=c.clip_range_high,
        mask=mask.to(device),
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

    def __init__(
        self,
        config: ConfigDict,
        parts: Parts,
        rewards: Mapping[str, Reward],
        accelerator: Accelerator,
        tracker: Tracker,
    ):
        self.actor = parts.actor_for(parts.editor)
        self.vlm = vlm = self.actor.vlm
        super().__init__(config, parts, vlm, rewards, accelerator, tracker)
        objective = partial(words_objective, self.settings, vlm, self.actor.temperature)
        self.learner = Learner(config, vlm, accelerator, objective)

    def attempt(self, asked: Asked) -> Tried:
        n, g = len(asked.wishes), self.settings.group
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
            name: torch.cat(
                [padded(getattr(part, name), self.actor.max_tokens) for part in written]
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
                    [edits[k].text for k in rows],
                    seed=asked.seed,
                    numbers=[asked.numbers[every[k]] for k in rows],
                    stage=asked.round,
                ).images
        own = {name: values.unflatten(0, (n, g)) for name, values in own.items()}
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
        return words if self.vlm.dtype == torch.float32 else self.again(words)

    @torch.no_grad()
    def again(self, words: Words) -> Words:
        """With the log-probs of the whole completions at once, as the update computes them: in half
        precision those of the writing, token by token, round otherwise."""
        parts = []
        for rows in torch.arange(len(words.state)).split(self.config.train.micro_batch):
            requests = [words.requests[i] for i in words.state[rows].tolist()]
            images = words.images[words.state[rows]]
            given = (images, requests, words.tokens[rows], words.mask[rows])
            parts.append(self.vlm.log_probs(*given, self.actor.temperature).cpu())
        return replace(words, log_probs=torch.cat(parts))


class EditorRun(PhaseRun):
    """Phase 2: the editor's LoRA, by groups of edits of one picture under one edit prompt, which
    the actor, now fixed, has written."""

    name = "editor"

    def __init__(
        self,
        config: ConfigDict,
        parts: Parts,
        rewards: Mapping[str, Reward],
        accelerator: Accelerator,
        tracker: Tracker,
    ):
        policy = parts.editor.policy
        super().__init__(config, parts, policy, rewards, accelerator, tracker)
        own = self.settings
        self.trained_steps = own.trained_steps
        sampling = replace(parts.editor.settings, branches=own.group, skip_last=own.skip_last)
        self.editor = Editor(policy, sampling)
        self.write = acting(parts.actor_for(parts.editor))
        objective = partial(pairs_objective, sampling, own.clip_range, policy)
        self.learner = Learner(config, policy, accelerator, objective)

    def attempt(self, asked: Asked) -> Tried:
        g = self.settings.group
        with self.timed("write"):
            edits = self.write(asked)
        rows = [i for i, edit in enumerate(edits) if edit.text]
        if not rows:
            empty = asked.images[:0]
            return Tried([], [], empty, [], [], self.nothing())
        some = asked.rows(rows)
        with self.timed("edit"):
            made = self.editor.edit(
                some.images,
                some.prompts,
                [edits[i].text for i in rows],
                seed=asked.seed,
                numbers=some.numbers,
                stage=asked.round,
                trained_steps=self.trained_steps,
            )
        own = {
            "latents": made.sampled.latents.unflatten(0, (-1, g)),
            "log_probs": made.sampled.log_probs.unflatten(0, (-1, g)),
        }
        every = [edits[i] for i in rows for _ in range(g)]
        alone = list(range(len(every)))
        return Tried(rows, some.prompts, made.images, every, alone, own)

    def nothing(self) -> dict[str, Tensor]:
        policy, m = self.trainee, self.trained_steps
        shapes = {"latents": (m + 1, *policy.latent_shape), "log_probs": (m,)}
        g, device = self.settings.group, policy.device
        return {name: torch.zeros(0, g, *shape, device=device) for name, shape in shapes.items()}

    def rewarded(self, states: States) -> Tensor:
        return states.share

    def batch(self, states: States, groups: Groups, index: Tensor) -> Batch:
        policy, state = self.trainee, index // self.settings.group
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
