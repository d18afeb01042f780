"""The ranges of a config's values: what every run has, and what SRRL has besides.

Nothing here imports torch. `values` are the config's leaves by dotted key; `require(ok, key, text)`
refuses a key's value, saying what is expected.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

Require = Callable[[bool, str, str], None]
BACKENDS = ("local", "worker", "original")
PRECISIONS = ("no", "fp16", "bf16")
SEEDS, MOST_SEED = ("seed", "first_seed"), 2**63 - 1
# What a number is at most, by the last word of its key.
MOST = 1_000_000
LARGEST = {"rank": 10_000, "resolution": 20_000, "count": 10_000, "max_rounds": 1000}
DEVICE = r"(cpu|cuda|mps|xpu)(:\d{1,3})?"
# Of drawing for scripts/rig.py evaluate.
WAYS = ("once", "again", "best", "plain", "actor", "expert", "inversion", "inversion_actor")


def check_run(c: ConfigDict, values: Mapping[str, Any], require: Require) -> None:
    """What any method's run has: stages, optimizer, evaluation, checkpoints, pictures, rewards."""
    check_numbers(values, require)
    seeds = c.eval.first_seed + c.eval.seeds
    require(seeds <= MOST_SEED, "eval.first_seed", f"with eval.seeds up to {MOST_SEED}")
    for key in (
        "stages.total",
        "train.micro_batch",
        "lora.rank",
        "lora.alpha",
        "eval.num_prompts",
        "eval.seeds",
        "checkpoint.every",
        "pictures.every",
        "pictures.prompts",
    ):
        require(values[key] >= 1, key, "at least 1")
    for key in ("checkpoint.keep_every", "eval.every", "train.max_bad_steps"):
        require(values[key] >= 0, key, "at least 0")
    for key in ("learning_rate", "adam_epsilon", "max_grad_norm"):
        require(values[f"train.{key}"] > 0, f"train.{key}", "above 0")
    require(c.process_timeout >= 1, "process_timeout", "at least 1")
    for key in ("train.adam_beta1", "train.adam_beta2"):
        require(0 <= values[key] < 1, key, "0 up to 1")
    require(0 <= c.train.final_lr_fraction <= 1, "train.final_lr_fraction", "0 to 1")
    require(c.train.adam_weight_decay >= 0, "train.adam_weight_decay", "at least 0")
    deviation = c.train.max_first_ratio_dev
    require(deviation is None or deviation > 0, "train.max_first_ratio_dev", "above 0")
    for key, kind in (("eval.rounds", int), ("lora.target_modules", str)):
        right = all(type(v) is kind for v in values[key])
        right = right and len(values[key]) == len(set(values[key])) > 0
        require(right, key, f"at least one {kind.__name__}, each once")
    require(1 <= min(c.eval.rounds) <= max(c.eval.rounds) <= 1000, "eval.rounds", "1 to 1000")
    splits = ["train", *(["heldout"] if c.eval.heldout else [])]
    judged = [f"{split}:{rounds}" for split in splits for rounds in c.eval.rounds]
    require(c.eval.best in (None, *judged), "eval.best", f"one of {', '.join(judged)}, or unset")
    for key in ("pretrained.model", "output_dir"):
        require(is_name(values[key]), key, "a name, in one line")
    check_name(c, require)
    check_rewards(c, values, require)
    for key, allowed in {
        "mixed_precision": PRECISIONS,
        "tracker": ("none", "wandb", "tensorboard"),
        "checkpoint.damaged": ("back", "stop"),
    }.items():
        require(values[key] in allowed, key, f"one of {', '.join(allowed)}")


def check_numbers(values: Mapping[str, Any], require: Require) -> None:
    """None is past what anything here can be: not a number, infinite, or a slip of the hand."""
    for key, value in values.items():
        if type(value) not in (int, float):
            continue
        if key.rpartition(".")[2] in SEEDS:
            require(0 <= value <= MOST_SEED, key, f"0 to {MOST_SEED}")
            continue
        most = LARGEST.get(key.rpartition(".")[2], MOST)
        require(abs(value) <= most, key, f"at most {most:,}")


def is_name(text: str) -> bool:
    """Whether it is a line of text that a file or a model can be called."""
    return bool(text.strip()) and text.isprintable() and len(text.encode()) <= 1000


def check_name(c: ConfigDict, require: Require) -> None:
    name, expected = c.run_name, "a folder's name, of 200 bytes at most"
    right = is_name(name) and "/" not in name and name not in (".", "..")
    require(right and len(name.encode()) <= 200, "run_name", expected)


def check_rewards(c: ConfigDict, values: Mapping[str, Any], require: Require) -> None:
    """Which rewards score, and where."""
    for key, allowed in {
        "reward.backend": BACKENDS,
        "reward.dtype": ("fp32", "fp16", "bf16"),
    }.items():
        require(values[key] in allowed, key, f"one of {', '.join(allowed)}")
    models = c.reward.models.to_dict()
    numbers = all(type(w) in (int, float) and abs(w) <= MOST for w in models.values())
    require(bool(models) and numbers, "reward.models", 'at least one, as {"name": weight}')
    device = c.reward.device
    right = device is None or re.fullmatch(DEVICE, device)
    require(bool(right), "reward.device", "cpu, cuda or cuda:NUMBER")
    require(0 not in models.values(), "reward.models", "a weight of 0 is a reward left out")
    given = all(isinstance(o, ConfigDict) for o in c.reward.options.values())
    require(given, "reward.options", 'keywords by reward, as {"name": {"keyword": value}}')
    for key in ("python", "address"):
        unused = c.reward.worker[key] is None or c.reward.backend != "local"
        expected = 'it is used with reward.backend "worker" or "original"'
        require(unused, f"reward.worker.{key}", expected)
    for key in ("load_s", "batch_s"):
        require(c.reward.worker[key] > 0, f"reward.worker.{key}", "above 0")


def check_srrl(c: ConfigDict, values: Mapping[str, Any], require: Require) -> None:
    """What SRRL has: its rollout, curriculum, selection and objective."""
    check_run(c, values, require)
    for key in (
        "stages.per_cycle",
        "sample.num_steps",
        "sample.num_batches_per_stage",
        "sample.batch_size",
        "sample.micro_batch",
        "sample.decode_batch",
        "branch.count",
        "reflect.max_rounds",
        "train.num_inner_epochs",
        "train.trajectories_per_update",
        "interval.left",
    ):
        require(values[key] >= 1, key, "at least 1")
    for key in ("reward.history", "train.positive_weight", "train.negative_weight"):
        require(values[key] >= 0, key, "at least 0")
    for key in ("sample.guidance_scale", "reflect.denoise_guidance", "reflect.inversion_guidance"):
        require(0 <= values[key] <= 100, key, "0 to 100")
    require(c.sample.num_steps <= 999, "sample.num_steps", "1 to 999")
    require(0 < c.sample.eta <= 1, "sample.eta", "above 0, up to 1")
    require(0 <= c.reflect.eta <= 1, "reflect.eta", "0 to 1")
    for key in ("train.clip_range", "train.adv_clip_max"):
        require(values[key] > 0, key, "above 0")
    for key in ("reflect.rounds", "stages.seed_cycle"):
        require(values[key] is None or values[key] > 0, key, "above 0")
    total, skip = c.sample.num_steps, c.interval.skip_last
    require(0 <= skip < total, "interval.skip_last", f"0 to num_steps-1={total - 1}")
    most = total - skip
    fixed = c.interval.steps
    expected = f"1 to num_steps-skip_last={most}"
    require(fixed is None or 1 <= fixed <= most, "interval.steps", expected)
    expected = f"left={c.interval.left} to num_steps-skip_last={most}"
    require(c.interval.left <= c.interval.right <= most, "interval.right", expected)
    depth = c.reflect.depth
    expected = f"skip_last+1={skip + 1} to num_steps={total}"
    require(depth is None or skip < depth <= total, "reflect.depth", expected)
    side = c.sample.resolution
    require(side is None or side >= 8, "sample.resolution", "at least 8, or unset")
    for key, allowed in {
        "prompts.draw": ("passes", "replacement", "variance"),
        "reflect.train_rounds": ("last", "all"),
        "reflect.when": ("always", "failed"),
        "select.mode": ("extremes", "all"),
        "train.updates": ("even", "full"),
        "reward.rounds": ("last", "all", "mean"),
        "train.round_weights": ("even", "linear"),
    }.items():
        require(values[key] in allowed, key, f"one of {', '.join(allowed)}")
    ordered = c.select.neg_threshold <= c.select.pos_threshold
    require(ordered, "select.neg_threshold", "at most pos_threshold")
    require(c.pretrained.lora is None or c.use_lora, "pretrained.lora", "unset with use_lora=False")
    varied = c.prompts.draw == "variance"
    known = c.reward.history > 0 and c.reflect.train_rounds == "last"
    expected = 'with reward.history above 0 and reflect.train_rounds "last"'
    require(not varied or known, "prompts.draw", expected)
    check_reflection(c, require)
    compared = c.branch.count > 1 or c.reward.history > 0
    expected = "at least 2 without reward.history: a score has nothing to be compared with"
    require(compared, "branch.count", expected)


def check_reflection(c: ConfigDict, require: Require) -> None:
    """What reflects less than always, and does not go together."""
    r, steps = c.reflect, c.sample.num_steps
    require(r.reuse >= 1, "reflect.reuse", "at least 1")
    fewer = r.num_steps is None or 1 <= r.num_steps <= steps
    require(fewer, "reflect.num_steps", f"1 to num_steps={steps}, or unset")
    given = {"reuse": r.reuse > 1, "num_steps": bool(r.num_steps), "when": r.when == "failed"}
    for name in (name for name, changed in given.items() if changed):
        require(r.train_rounds == "last", f"reflect.{name}", 'with reflect.train_rounds "last"')
        whole = r.depth is None or name == "reuse"
        require(whole, f"reflect.{name}", "with reflect.depth unset")
    require(not r.clamp or r.when == "failed", "reflect.clamp", 'with reflect.when "failed"')
    require(0 <= r.baseline <= 1, "reflect.baseline", "0 to 1")
    again = r.train_rounds == "last" and (r.rounds or 0) > 1
    expected = 'with reflect.train_rounds "last" and reflect.rounds above 1'
    require(not r.baseline or again, "reflect.baseline", expected)
    every = r.train_rounds == "all"
    expected = 'with reflect.train_rounds "all"'
    require(every or c.reward.rounds != "mean", "reward.rounds", expected)
    require(every or c.train.round_weights == "even", "train.round_weights", expected)


# What is a phase's own where it is unset for both.
OF_PHASE = {
    "stages.total": "stages",
    "train.learning_rate": "learning_rate",
    "train.micro_batch": "micro_batch",
    "train.trajectories_per_update": "trajectories_per_update",
}
PHASES = ("actor", "editor")


def phase_values(values: Mapping[str, Any], phase: str) -> dict[str, Any]:
    """What a phase has for the keys of OF_PHASE."""
    own = {key: values[f"phase.{phase}.{name}"] for key, name in OF_PHASE.items()}
    return {key: own[key] if values[key] is None else values[key] for key in OF_PHASE}


def check_phases(c: ConfigDict, values: Mapping[str, Any], require: Require) -> None:
    """What Reflection-GRPO has."""
    phases = [str(phase) for phase in c.phases]
    right = bool(phases) and set(phases) <= set(PHASES) and len(set(phases)) == len(phases)
    require(right, "phases", f"some of {', '.join(PHASES)}, each once")
    for phase in phases:

        def require_of(ok: bool, key: str, expected: str, phase: str = phase) -> None:
            own = key in OF_PHASE and values[key] is None
            require(ok, f"phase.{phase}.{OF_PHASE[key]}" if own else key, expected)

        filled = {**values, **phase_values(values, phase)}
        check_run(c, filled, require_of)
        least = filled["train.trajectories_per_update"] >= 1
        require_of(least, "train.trajectories_per_update", "at least 1")
        require(c.phase[phase].rounds >= 1, f"phase.{phase}.rounds", "at least 1")
        group = c.phase[phase].group
        expected = "at least 2: a reward has nothing to be compared with"
        require(group >= 2, f"phase.{phase}.group", expected)
        require(c.phase[phase].clip_range > 0, f"phase.{phase}.clip_range", "above 0")
    for key in ("actor.form_weight", "actor.kl_weight", "editor.likeness_weight"):
        require(values[f"phase.{key}"] >= 0, f"phase.{key}", "at least 0")
    a, e = c.phase.actor, c.phase.editor
    higher = a.clip_range_high >= a.clip_range
    require(higher, "phase.actor.clip_range_high", f"at least clip_range={a.clip_range}")
    require(e.skip_last >= 0, "phase.editor.skip_last", "at least 0")
    require(e.trained_steps >= 1, "phase.editor.trained_steps", "at least 1")
    watched = not c.train.stop_on_heldout or (c.eval.every > 0 and c.eval.heldout)
    require(watched, "train.stop_on_heldout", "with eval.every above 0 and eval.heldout")
    for key in ("sample.num_batches_per_stage", "sample.batch_size", "train.num_inner_epochs"):
        require(values[key] >= 1, key, "at least 1")
    require(c.train.adv_clip_max > 0, "train.adv_clip_max", "above 0")
    for key, allowed in {
        "prompts.draw": ("passes", "replacement"),
        "train.updates": ("even", "full"),
    }.items():
        require(values[key] in allowed, key, f"one of {', '.join(allowed)}")


def check_rig(c: ConfigDict, values: Mapping[str, Any], require: Require) -> None:
    """What RL-RIG has: the diffuser, the editor, checker and actor, the loop, its evaluation."""
    for key in (
        "sample.num_steps",
        "sample.micro_batch",
        "sample.decode_batch",
        "editor.num_steps",
        "checker.batch_size",
        "actor.batch_size",
        "actor.max_tokens",
        "loop.rounds",
        "evaluate.images",
        "evaluate.batch_size",
    ):
        require(values[key] >= 1, key, "at least 1")
    for part in (c.sample, c.editor):
        name = "sample" if part is c.sample else "editor"
        require(part.num_steps <= 999, f"{name}.num_steps", "1 to 999")
        require(0 < part.eta <= 1, f"{name}.eta", "above 0, up to 1")
        require(0 <= part.guidance_scale <= 100, f"{name}.guidance_scale", "0 to 100")
    require(0 <= c.editor.inversion_guidance <= 100, "editor.inversion_guidance", "0 to 100")
    require(1 <= c.editor.image_guidance <= 100, "editor.image_guidance", "1 to 100")
    depth = c.editor.depth
    name = "editor" if c.editor.kind == "inversion" else "sample"
    steps = values[f"{name}.num_steps"]
    expected = f"1 to {name}.num_steps={steps}"
    require(depth is None or 1 <= depth <= steps, "editor.depth", expected)
    require(0 < c.checker.threshold < 1, "checker.threshold", "between 0 and 1")
    require(c.actor.temperature > 0, "actor.temperature", "above 0")
    for key in ("sample.resolution", "checker.side", "actor.side"):
        require(values[key] is None or values[key] >= 8, key, "at least 8, or unset")
    ways = [str(way) for way in c.evaluate.ways]
    right = bool(ways) and set(ways) <= set(WAYS) and len(set(ways)) == len(ways)
    require(right, "evaluate.ways", f"some of {', '.join(WAYS)}, each once")
    require(c.editor.kind != "instruct" or c.editor.model, "editor.model", "an InstructPix2Pix")
    check_phases(c, values, require)
    for key, allowed in {
        "editor.kind": ("instruct", "inversion"),
        "checker.form": ("yesno", "lookup"),
        "loop.keep": ("best", "last"),
    }.items():
        require(values[key] in allowed, key, f"one of {', '.join(allowed)}")
