"""What a stage costs in network evaluations, before it runs.

One evaluation is one sample through the UNet once; classifier-free guidance takes two.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from srrl.curriculum import StagePlan, stage_plan


@dataclass(frozen=True)
class StageCost:
    """Network evaluations of a stage by phase, and its images.

    update_per_trajectory is for one selected trajectory over all inner epochs.
    """

    images: int
    reflect: int
    sample: int
    update_per_trajectory: int


def evaluations(guidance: float) -> int:
    """Evaluations of one guided prediction: one where the guidance is 0 or 1, otherwise two."""
    return 1 if guidance in (0, 1) else 2


def plan_for(c: ConfigDict, stage: int) -> StagePlan:
    """The plan of a stage under the config."""
    return stage_plan(
        stage,
        per_cycle=c.stages.per_cycle,
        left=c.interval.left,
        right=c.interval.right,
        rounds=c.reflect.rounds,
        max_rounds=c.reflect.max_rounds,
        trained_steps=c.interval.steps,
    )


def stage_cost(c: ConfigDict, plan: StagePlan) -> StageCost:
    """With P prompts, G branches, T steps, K rounds, m trained steps, E epochs and g(w)
    evaluations at guidance w:

    reflect  P (K-1) T (g(denoise) + g(inversion))
    sample   g(w) P (T - b + G b), where the branches' steps b are m + skip_last
    update   g(w) E m for each selected trajectory

    With train_rounds "all", rounds 2 .. K are sampled at P G T g(w), and only the P G (K-1) T
    g(inversion) of walking back is reflection.
    """
    prompts = c.sample.num_batches_per_stage * c.sample.batch_size
    branches, steps, m = c.branch.count, c.sample.num_steps, plan.trained_steps
    guided = evaluations(c.sample.guidance_scale)
    back = evaluations(c.reflect.inversion_guidance)
    own = m + c.interval.skip_last
    sample = guided * prompts * (steps - own + branches * own)
    again = plan.rounds - 1
    if c.reflect.train_rounds == "all":
        images = prompts * branches * plan.rounds
        reflect = prompts * branches * again * steps * back
        sample += prompts * branches * again * steps * guided
    else:
        images = prompts * branches
        reflect = prompts * again * steps * (evaluations(c.reflect.denoise_guidance) + back)
    return StageCost(images, reflect, sample, guided * c.train.num_inner_epochs * m)


def evaluation_cost(c: ConfigDict, num_prompts: int) -> int:
    """Network evaluations of evaluating `num_prompts` prompts once (srrl.trainer.evaluate)."""
    steps, again = c.sample.num_steps, c.eval.rounds - 1
    denoise = c.sample.guidance_scale
    if c.reflect.train_rounds == "last":
        denoise = c.reflect.denoise_guidance
    reflect = again * (evaluations(denoise) + evaluations(c.reflect.inversion_guidance))
    images = min(c.eval.num_prompts, num_prompts) * c.eval.seeds
    return images * steps * (reflect + evaluations(c.sample.guidance_scale))


def evaluated_stages(c: ConfigDict) -> list[int]:
    """After how many stages the policy is evaluated: 0, every eval.every, and all."""
    return sorted({*range(0, c.stages.total + 1, c.eval.every), c.stages.total})


def stage_work(c: ConfigDict, stage: int, selected: int | None = None) -> float:
    """A stage's work in network evaluations, one with gradient counting as three.

    `selected` trajectories are trained; unknown beforehand, it is guessed.
    """
    cost = stage_cost(c, plan_for(c, stage))
    if selected is None:  # at most two in a group, usually fewer
        share = 1.0 if c.select.mode == "all" else min(1.0, 1.5 / c.branch.count)
        selected = round(cost.images * share)
    return cost.reflect + cost.sample + 3 * cost.update_per_trajectory * selected


def work_left(c: ConfigDict, done: int, num_prompts: list[int], evaluate_now: bool) -> float:
    """The work after `done` stages, evaluations of the splits of `num_prompts` included."""
    times = sum(n > done for n in evaluated_stages(c)) + evaluate_now
    evaluations_each = sum(evaluation_cost(c, n) for n in num_prompts)
    return sum(stage_work(c, n) for n in range(done, c.stages.total)) + times * evaluations_each


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
        "evaluations a selected trajectory": span([x.update_per_trajectory for x in costs]),
        "images in all": f"{sum(x.images for x in costs):,}",
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
