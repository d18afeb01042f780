"""What a stage costs in network evaluations, before it runs.

One evaluation is one sample through the UNet once; classifier-free guidance takes two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from srrl.curriculum import (
    StagePlan,
    evaluated_stages,
    judges_first,
    plan_for,
    reflected_at,
    shows_pictures,
)
from srrl.prompts import split_prompts


@dataclass(frozen=True)
class StageCost:
    """Network evaluations of a stage by phase, and its images.

    update_per_pass is for one selected trajectory in one inner epoch.
    """

    images: int
    reflect: int
    sample: int
    update_per_pass: int


def nfe_per_step(guidance: float) -> int:
    """Evaluations of one guided prediction: one where the guidance is 0 or 1, otherwise two."""
    return 1 if guidance in (0, 1) else 2


@dataclass(frozen=True)
class Calls:
    """Network calls that are alike: `times` predictions for `samples` samples at a guidance.

    They belong to the phase "reflect", "sample" or "decode" and run in micro-batches.
    """

    phase: str
    samples: int
    times: int
    guidance: float

    @property
    def nfe(self) -> int:
        return self.samples * self.times * nfe_per_step(self.guidance)

    def split(self, micro_batch: int) -> list[tuple[int, int]]:
        """(how many, of how many rows): the calls of the network itself."""
        whole, rest = divmod(self.samples, micro_batch)
        sizes = ((whole, micro_batch), (1, rest))
        return [(self.times * n, x * nfe_per_step(self.guidance)) for n, x in sizes if n * x]

    def network_calls(self, micro_batch: int) -> int:
        """How often the network is called."""
        return sum(n for n, _ in self.split(micro_batch))


def rollout_calls(
    c: ConfigDict, prompts: int, rounds: int, trained_steps: int, branches: int, train_rounds: str
) -> list[Calls]:
    """The network calls of one rollout (srrl.rollout.rollout) of `prompts` prompts."""
    steps, again, w = c.sample.num_steps, rounds - 1, c.sample.guidance_scale
    down = c.reflect.num_steps or steps  # of a reflecting round
    depth = c.reflect.depth or down
    parted = trained_steps + c.interval.skip_last if trained_steps else 0
    spread, back = prompts * branches, c.reflect.inversion_guidance
    if train_rounds == "all":
        branched = steps
        rest = [
            Calls("reflect", spread, again * depth, back),
            Calls("sample", spread, again * depth, w),
        ]
    else:
        branched = c.reflect.depth or steps if again else steps
        reflected = down + (again - 1) * depth if again else 0
        rest = [
            Calls("reflect", prompts, reflected, c.reflect.denoise_guidance),
            Calls("reflect", prompts, again * depth, back),
        ]
    last = [Calls("sample", prompts, branched - parted, w), Calls("sample", spread, parted, w)]
    return [x for x in (*rest, *last) if x.samples * x.times]


def rollout_decodes(
    prompts: int, rounds: int, branches: int, reflected: int, train_rounds: str
) -> list[Calls]:
    """The pictures that one rollout decodes; `reflected`: of so many reflecting rounds, too."""
    if train_rounds == "all":
        return [Calls("decode", prompts * branches, rounds, 1)]
    shown = [Calls("decode", prompts, reflected, 1)] if reflected else []
    return [Calls("decode", prompts * branches, 1, 1), *shown]


def batches(c: ConfigDict, prompts: int | None = None) -> Iterator[tuple[int, int]]:
    """(how many, of how many prompts) rollouts of a stage, or of a process's share of it."""
    total = c.sample.num_batches_per_stage * c.sample.batch_size if prompts is None else prompts
    whole, rest = divmod(total, c.sample.batch_size)
    yield from ((n, size) for n, size in ((whole, c.sample.batch_size), (1, rest)) if n * size)


def stage_calls(c: ConfigDict, plan: StagePlan, prompts: int | None = None) -> list[Calls]:
    """The network calls of sampling a stage, or of a process's share of so many prompts; with
    reflect.when "failed" as many as there are where every first round fails."""
    reflects = reflected_at(c, plan.stage) == plan.stage
    return [
        replace(calls, times=n * calls.times)
        for n, size in batches(c, prompts)
        for calls in rollout_calls(
            c, size, plan.rounds, plan.trained_steps, c.branch.count, c.reflect.train_rounds
        )
        if reflects or calls.phase != "reflect"
    ]


def sampling_calls(c: ConfigDict) -> int:
    """How often a run calls the UNet to reflect and sample, on one process, evaluations apart."""
    stages = (stage_calls(c, plan_for(c, n)) for n in range(c.stages.total))
    return sum(x.network_calls(c.sample.micro_batch) for calls in stages for x in calls)


def stage_decodes(c: ConfigDict, plan: StagePlan, prompts: int | None = None) -> list[Calls]:
    """The pictures decoded in a stage, likewise."""
    shown, trained = 0, c.reflect.train_rounds
    if plan.rounds > 1 and reflected_at(c, plan.stage) == plan.stage:
        judged = int(judges_first(c))
        shown = plan.rounds - 1 if shows_pictures(c, plan.stage) else judged
    return [
        replace(calls, times=n * calls.times)
        for n, size in batches(c, prompts)
        for calls in rollout_decodes(size, plan.rounds, c.branch.count, shown, trained)
    ]


def stage_cost(c: ConfigDict, plan: StagePlan) -> StageCost:
    """With P prompts, G branches, T steps, K rounds, m trained steps and g(w) evaluations at
    guidance w:

    reflect  P (K-1) T (g(denoise) + g(inversion))
    sample   g(w) P (T - b + G b), where the branches' steps b are m + skip_last
    update   g(w) m for each time that a trajectory is trained (trained_passes)

    That is for reflections over all steps. With reflect.num_steps S theirs are S, not T; in stages
    that share others' reflections (reflect.reuse) there are none. With reflect.when "failed" P
    counts for the inversions and later rounds the prompts whose first round fails, and all of them
    here. With reflect.depth D the inversions and the rounds after the first have D steps. With
    train_rounds "all", rounds 2 .. K are sampled at P G T g(w), and only the P G (K-1) T
    g(inversion) of walking back is reflection.
    """
    calls = stage_calls(c, plan)
    by_phase = {
        phase: sum(x.nfe for x in calls if x.phase == phase) for phase in ("reflect", "sample")
    }
    rounds = plan.rounds if c.reflect.train_rounds == "all" else 1
    images = c.sample.num_batches_per_stage * c.sample.batch_size * c.branch.count * rounds
    update = nfe_per_step(c.sample.guidance_scale) * plan.trained_steps
    return StageCost(images, **by_phase, update_per_pass=update)


def trained_passes(c: ConfigDict, selected: int) -> int:
    """How many trajectories a stage's optimizer steps take in, each counted once in every pass."""
    t = c.train
    if t.updates == "even":
        return selected * t.num_inner_epochs
    whole = selected // 2 * 2 * t.num_inner_epochs
    return whole // t.trajectories_per_update * t.trajectories_per_update


def evaluation_calls(c: ConfigDict, num_prompts: int) -> list[Calls]:
    """The network calls of evaluating `num_prompts` prompts once (srrl.evaluation.evaluate)."""
    prompts = min(c.eval.num_prompts, num_prompts)
    calls = (rollout_calls(c, prompts, k, 0, 1, "last") for k in c.eval.rounds)
    return [replace(x, times=c.eval.seeds * x.times) for of_k in calls for x in of_k]


def evaluation_decodes(c: ConfigDict, num_prompts: int) -> list[Calls]:
    """The pictures decoded there."""
    prompts = min(c.eval.num_prompts, num_prompts)
    calls = (rollout_decodes(prompts, k, 1, 0, "last") for k in c.eval.rounds)
    return [replace(x, times=c.eval.seeds * x.times) for of_k in calls for x in of_k]


def evaluation_cost(c: ConfigDict, num_prompts: int) -> int:
    """Network evaluations of evaluating `num_prompts` prompts once."""
    return sum(x.nfe for x in evaluation_calls(c, num_prompts))


def expected_selected(c: ConfigDict, cost: StageCost) -> int:
    """A guess of the trajectories that a stage selects: at most two in a group, usually fewer."""
    share = 1.0 if c.select.mode == "all" else min(1.0, 1.5 / c.branch.count)
    return round(cost.images * share)


def run_images(c: ConfigDict) -> int:
    """The scored images of a run's stages."""
    return sum(stage_cost(c, plan_for(c, n)).images for n in range(c.stages.total))


def run_evaluations(c: ConfigDict) -> int:
    """Network evaluations of training a run, as far as known before it has selected."""
    costs = [stage_cost(c, plan_for(c, n)) for n in range(c.stages.total)]
    return sum(
        cost.reflect
        + cost.sample
        + cost.update_per_pass * trained_passes(c, expected_selected(c, cost))
        for cost in costs
    )


def judging_evaluations(c: ConfigDict) -> int:
    """Network evaluations of a run's own evaluations."""
    times = len(evaluated_stages(c))
    return times and sum(times * evaluation_cost(c, len(p)) for p in split_prompts(c).values())


def stage_work(c: ConfigDict, stage: int, selected: int | None = None) -> float:
    """A stage's work in network evaluations, one with gradient counting as three.

    `selected` trajectories are trained; unknown beforehand, it is guessed.
    """
    cost = stage_cost(c, plan_for(c, stage))
    if selected is None:
        selected = expected_selected(c, cost)
    return cost.reflect + cost.sample + 3 * cost.update_per_pass * trained_passes(c, selected)


def totals_table(c: ConfigDict) -> str:
    """The derived totals of a run, as a table to print at its start."""
    plans = [plan_for(c, n) for n in range(c.stages.total)]
    costs = [stage_cost(c, plan) for plan in plans]

    def span(values: list[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    rows = {
        "stages": f"{c.stages.total} (cycles of {c.stages.per_cycle})",
        "rounds K": span([p.rounds for p in plans]) + f" (train_rounds {c.reflect.train_rounds})",
        "trained steps m": span([p.trained_steps for p in plans]) + f" of {c.sample.num_steps}",
        "prompts a stage": f"{c.sample.num_batches_per_stage * c.sample.batch_size:,}",
        "images a stage": span([x.images for x in costs]),
        "evaluations a stage, reflect": span([x.reflect for x in costs]),
        "evaluations a stage, sample": span([x.sample for x in costs]),
        "evaluations a trained trajectory": span([x.update_per_pass for x in costs]),
        "images in all": f"{sum(x.images for x in costs):,}",
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
