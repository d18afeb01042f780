"""The bill before the run: network evaluations, operations, memory and hours, by phase.

Operations and the memory of single calls are counted on the run's own networks and code
(imagined.py), how often each is called is known beforehand (srrl/budget.py), and what a stage
holds between its calls follows from its shapes. Only how many trajectories a stage will select is
a guess.
"""

import math

import torch
from diffusers import DiffusionPipeline
from ml_collections import ConfigDict

from srrl.budget import (
    Calls,
    evaluation_calls,
    evaluation_decodes,
    expected_selected,
    nfe_per_step,
    stage_calls,
    stage_cost,
    stage_decodes,
    trained_passes,
)
from srrl.curriculum import evaluated_stages, judges_first, plan_for, reflected_at
from srrl.measure.bill import PHASES, REWARD, Bill, Call, Phase, Usage
from srrl.measure.counting import Count
from srrl.measure.imagined import Imagined
from srrl.prompts import split_prompts
from srrl.run.distributed import part


def in_calls(n: int, batch: int) -> list[tuple[int, int]]:
    """(how many, of how many): the calls for n, `batch` at once."""
    return Calls("", n, 1, guidance=1).split(batch)


class Biller:
    """Makes the bill of a config for one kind of device.

    cuda: a GPU, or the CPU. processes: how many share the prompts; with `fsdp` the UNet as well.
    pipe: the pipeline where it is loaded already. scored_beside: on a GPU a batch is scored while
    the next one is sampled, as the trainer does, and not in turn.
    """

    def __init__(
        self,
        c: ConfigDict,
        cuda: bool = True,
        processes: int = 1,
        fsdp: bool = False,
        pipe: DiffusionPipeline | None = None,
        scored_beside: bool = True,
    ):
        self.config, self.cuda, self.processes = c, cuda, processes
        self.shards, self.scored_beside = processes if fsdp else 1, scored_beside and cuda
        self.all_prompts = c.sample.num_batches_per_stage * c.sample.batch_size
        self.prompts = -(-self.all_prompts // processes)
        self.batch = min(c.sample.batch_size, self.prompts)
        self.plans = [plan_for(c, n) for n in range(c.stages.total)]
        self.costs = [stage_cost(c, plan) for plan in self.plans]
        self.imagined = i = Imagined(c, cuda, pipe)
        self.padded = i.policy.padded
        self.kinds = {
            "network": "single" if i.policy.dtype == torch.float32 else "half",
            "vae": "single" if i.policy.vae_dtype == torch.float32 else "half",
            "rewards": "half" if cuda and c.reward.dtype != "fp32" else "single",
        }
        self.sampled = min(self.batch * c.branch.count, c.sample.micro_batch)
        guidance = c.sample.guidance_scale
        self.predicted = i.predict(self.sampled, guidance)
        self.flops_a_row = self.predicted.flops // self.padded(
            self.sampled * nfe_per_step(guidance)
        )
        self.encoded, self.decoded = i.encode()[0], i.decode(self.padded(1))
        self.scored = {name: i.score(name, 1) for name in i.rewards}
        self._updates: dict[bool, Count] = {}

    def update(self, checkpointing: bool | None = None) -> Count:
        """One micro-batch of the update, with gradient checkpointing as the config says or not."""
        if checkpointing is None:
            checkpointing = self.config.train.gradient_checkpointing
        if checkpointing not in self._updates:
            micro = self.config.train.micro_batch
            self._updates[checkpointing] = self.imagined.update(micro, checkpointing)
        return self._updates[checkpointing]

    # ------------------------------------------------------------------ operations

    def bill(self, checkpointing: bool | None = None) -> Bill:
        """With gradient checkpointing as the config says, or as told."""
        c = self.config
        stages = [self.stage(n, checkpointing) for n in range(c.stages.total)]
        phases = {name: Phase() for name in PHASES}
        for stage in stages:
            for name, phase in stage.items():
                phases[name].nfe += phase.nfe
                phases[name].calls += phase.calls
        splits = [len(prompts) for prompts in split_prompts(c).values()]
        prompts = self.distinct_prompts(*splits)
        self.add(phases["encode"], "network", self.encoded, [(prompts, self.encoded.flops)])
        for split in splits if c.eval.every else []:
            self.add_evaluations(phases["evaluate"], split)
        for usage in self.usages(checkpointing):
            phase = phases[usage.phase]
            phase.peak = max(phase.peak, usage.peak)
        some = self.config.reflect.when == "failed"
        return Bill(phases, stages, self.resident(), self.imagined.uncounted, at_most=some)

    def stage(self, n: int, checkpointing: bool | None = None) -> dict[str, Phase]:
        """A stage's phases, their peaks left 0."""
        c, plan, cost = self.config, self.plans[n], self.costs[n]
        phases = {name: Phase() for name in ("reflect", "sample", "decode", "score", "update")}
        for rank in range(self.processes):
            share = len(part(self.all_prompts, rank, self.processes))
            drawn = [*stage_calls(c, plan, share), *stage_decodes(c, plan, share)]
            self.add_drawing(phases, drawn)
        last = self.all_prompts * c.branch.count
        judged = last if c.reward.rounds == "last" else cost.images
        if plan.rounds > 1 and judges_first(c) and reflected_at(c, n) == n:
            judged += self.all_prompts
        self.add_scores(phases["score"], judged)
        pairs = trained_passes(c, expected_selected(c, cost)) * plan.trained_steps
        phases["update"].nfe = pairs * nfe_per_step(c.sample.guidance_scale)
        one, micro = self.update(checkpointing), c.train.micro_batch
        sizes = [(n, size * one.flops // micro) for n, size in in_calls(pairs, micro)]
        self.add(phases["update"], "network", one, sizes)
        return phases

    def add(self, phase: Phase, kind: str, count: Count, sizes: list[tuple[int, int]]) -> None:
        """(how many, of how many operations): calls of as many operators as were counted."""
        for times, flops in sizes:
            phase.calls[Call(self.kinds[kind], flops, count.operators)] += times

    def add_drawing(self, phases: dict[str, Phase], drawn: list[Calls], times: int = 1) -> None:
        """Calls of the UNet and, in the phase "decode", of the VAE."""
        c = self.config.sample
        of_picture = self.decoded.flops // self.padded(1)
        for calls in drawn:
            if calls.phase == "decode":
                kind, count, a_row, batch = "vae", self.decoded, of_picture, c.decode_batch
            else:
                kind, count, a_row, batch = (
                    "network",
                    self.predicted,
                    self.flops_a_row,
                    c.micro_batch,
                )
                phases[calls.phase].nfe += times * calls.nfe
            sizes = [(times * n, self.padded(rows) * a_row) for n, rows in calls.split(batch)]
            self.add(phases[calls.phase], kind, count, sizes)

    def add_scores(self, phase: Phase, pictures: int) -> None:
        for name, count in self.scored.items():
            calls = in_calls(pictures, self.imagined.rewards[name].batch_size)
            self.add(phase, "rewards", count, [(n, size * count.flops) for n, size in calls])

    def add_evaluations(self, phase: Phase, prompts: int) -> None:
        """The run's evaluations of a split of so many prompts."""
        c, times = self.config, len(evaluated_stages(self.config))
        drawn = [*evaluation_calls(c, prompts), *evaluation_decodes(c, prompts)]
        self.add_drawing(dict.fromkeys(PHASES, phase), drawn, times)
        images = c.eval.seeds * len(c.eval.rounds) * min(c.eval.num_prompts, prompts)
        self.add_scores(phase, times * images)

    def distinct_prompts(self, train: int, heldout: int = 0) -> int:
        """Prompts that the run encodes at most, of files with so many."""
        c = self.config
        judged = c.eval.num_prompts if c.eval.every else 0
        drawn = min(train, (c.stages.seed_cycle or c.stages.total) * self.all_prompts)
        return max(drawn, min(train, judged)) + min(heldout, judged)

    # ------------------------------------------------------------------ memory

    def resident(self) -> dict[str, int]:
        """Bytes by part that stay, as they are from the first optimizer step on."""
        c, sizes = self.config, self.imagined.sizes()
        del sizes["text encoders"]
        if not self.rewards_here:
            sizes = {k: v for k, v in sizes.items() if not k.startswith("reward ")}
        trained = sizes["trained weights"]
        sizes["optimizer state"] = trained // 2 if c.train.use_8bit_adam else 2 * trained
        for name in ("trained weights", "optimizer state"):
            sizes[name] //= self.shards
        return {name: size for name, size in sizes.items() if size}

    @property
    def rewards_here(self) -> bool:
        """Do the reward networks take this process's memory on this device?"""
        r, own = self.config.reward, ("cuda", "cuda:0") if self.cuda else ("cpu",)
        return r.backend == "local" and (r.device is None or r.device in own)

    def held(self) -> tuple[int, int, int, int]:
        """Bytes of a process's trajectories when all are sampled, of their pictures, which are on
        the CPU, of a batch's latents while it is sampled, and of what was selected; each the
        largest over the stages."""
        c, policy = self.config, self.imagined.policy
        latent = 4 * math.prod(policy.latent_shape)
        scale = 2 ** (len(policy.pipe.vae.config.block_out_channels) - 1)
        picture = 0 if self.cuda else 3 * math.prod(policy.latent_shape[1:]) * scale**2
        text = 2 * 4 * sum(shape.numel() for shape in self.imagined.text_shapes)
        every_round = c.reflect.train_rounds == "all"
        kept = pictures = own = selected = 0.0
        for plan, cost in zip(self.plans, self.costs, strict=True):
            steps = plan.trained_steps + 1
            images = cost.images * self.prompts / self.all_prompts
            kept = max(kept, images * (picture + steps * latent))
            pictures = max(pictures, images * picture)
            taken = c.sample.num_steps + 1 if every_round else steps + c.interval.skip_last
            own = max(own, self.batch * c.branch.count * taken * latent)
            selected = max(selected, expected_selected(c, cost) * (steps * latent + text))
        return round(kept), round(pictures), round(own), round(selected)

    def usages(self, checkpointing: bool | None = None) -> list[Usage]:
        """What takes memory when; with gradient checkpointing as the config says, or as told."""
        c, i = self.config, self.imagined
        base, sizes = sum(self.resident().values()), i.sizes()
        kept, pictures, own, selected = self.held()
        before = base + kept * (self.prompts - self.batch) // self.prompts  # and what is sampled
        after = base + pictures + selected
        branches, micro = self.batch * c.branch.count, c.sample.micro_batch
        walked = branches if c.reflect.train_rounds == "all" else self.batch
        sampling, decoding = "sample.micro_batch", "sample.decode_batch"
        # Where every weight is trained, autocast keeps them in half precision for a call, and
        # gradients stay for the next one: neither grows with the call.
        trained = sizes["trained weights"]
        grads = 0 if c.use_lora else trained
        casts = grads // 2 if self.kinds["network"] == "half" else 0
        each = (self.predicted.peak - casts) / self.sampled
        updated = self.update(checkpointing)
        pair = (updated.peak - casts - grads) / c.train.micro_batch
        casts, grads, trained = (n // self.shards for n in (casts, grads, trained))
        # gradients, and AdamW's temporaries: on a GPU as large as the weights; before it those of
        # the sum over the processes
        step = trained * (1 + self.cuda + 2 * (self.processes > self.shards))
        picture, decodes = self.decoded.peak / self.padded(1), c.sample.decode_batch
        drawing = [
            Usage("reflect", before + casts, each, min(walked, micro), sampling),
            Usage("sample", before + own + casts, each, min(branches, micro), sampling),
            Usage("decode", before + 2 * own, picture, min(branches, decodes), decoding),
        ]
        beside = self.scored_beside and self.prompts > self.batch
        meanwhile = max(usage.peak for usage in drawing) if beside else before
        scores = [
            Usage("score", meanwhile, self.scored[k].peak, min(branches, r.batch_size), REWARD + k)
            for k, r in i.rewards.items()
            if self.rewards_here
        ]
        judged = Usage("evaluate", base + casts, each, min(c.eval.num_prompts, micro), sampling)
        return [
            Usage("encode", base + sizes["text encoders"] + self.encoded.peak),
            *(drawing if any(plan.rounds > 1 for plan in self.plans) else drawing[1:]),
            *scores,
            # when all are sampled: the batches' trajectories and their copy in one, then with it
            # what was selected, which alone the update keeps
            Usage("score", base + kept + max(kept, selected)),
            Usage("update", after + casts + grads, pair, c.train.micro_batch, "train.micro_batch"),
            Usage("update", after + step),
            *([judged] if c.eval.every else []),
        ]
