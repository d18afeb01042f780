"""The study "does reflection pay?": its arms, seeds and budgets, for scripts/study.py.

    --config config/study.py:tiny    the embedded models, on a laptop
    --config config/study.py:sweep   one thing changed at a time, by which its arms were chosen
    --config config/study.py:sd14    Stable Diffusion v1.4, on GPUs
    --config config/study.py:rig     RL-RIG's phases

An arm is a way to train: presets and values over the study's own, as in config/stage_process.py.
The reference arm has `stages` stages. With the budget "images" every arm has as many stages as give
the reference's number of images; with "evaluations" as many as take its network evaluations.
"""

from ml_collections import ConfigDict


def tiny() -> ConfigDict:
    c = ConfigDict()
    # Runs and evaluations are below it. In the document the tables between the marks of this name,
    # of these splits ("heldout", "train", "all", "wordings"), and its plots are written anew.
    # NAME.csv beside the document keeps what is made of each run, and the tables are made from it.
    c.name, c.output_dir = "study", "runs/study"
    c.report, c.splits = "docs/RESULTS.md", ("heldout", "train", "wordings")
    # The splits on which a table shows all arms, by the first reward; NAME.csv has every reward's.
    c.shown = ("all",)
    # What all arms share: a preset of config/stage_process.py and values over it.
    c.preset = "tiny"
    c.overrides = ("eval.every=0", "pictures.every=1000", "checkpoint.keep_every=0")
    c.overrides += ("reflect.when=always",)  # the arms say otherwise
    c.seeds = (320, 321, 322, 323, 324)
    # A LoRA that every run begins with, "{seed}" standing for its seed ("": a fresh one), and what
    # is added to the seed, so that what goes on draws other prompts and noise than before.
    c.begin, c.seed_offset = "", 0
    c.budgets = ("evaluations",)
    c.reference, c.stages = "ddpo", 12
    # K of "growing" arms goes up to this, in stages of equal number.
    c.max_rounds = 3
    # What each arm is called in the tables, its preset and its values over it. "chosen" says how it
    # was where that was not before any run, and marks it there.
    c.arms = {
        "ddpo": {"label": "DDPO", "preset": "ddpo", "values": ()},
        "K1_every": {
            "label": "K = 1, every sample trained",
            "preset": "",
            "values": ("reflect.rounds=1", "select.mode=all"),
        },
        "failed": {
            "label": "SRRL, K = 3, only what failed is reflected",
            "preset": "",
            "values": ("reflect.rounds=3", "select.mode=all", "reflect.when=failed"),
        },
        "failed_inv0": {
            "label": "the same, inverted at 0",
            "preset": "",
            "values": (
                "reflect.rounds=3",
                "select.mode=all",
                "reflect.when=failed",
                "reflect.inversion_guidance=0",
            ),
        },
    }
    # Every arm is also compared with these, seed by seed; and once more by the seeds `confirm`
    # alone, where others had chosen an arm.
    c.against, c.confirm = ("ddpo", "K1_every"), ()
    # How each trained policy is judged: the rewards, the first of which it was trained on, ways of
    # sampling, and images of each of so many prompts of each split.
    c.rewards = ("shapes", "judge")
    c.samplers = ("plain", "reflect:rounds=2", "reflect:rounds=3")
    c.num_prompts, c.images = 64, 2
    # A file of prompts in other words, a split of its own; "": none.
    c.wordings = "config/prompts/shapes_wordings.json"
    # Further ways to sample from this arm's first run, images of every held-out prompt.
    c.test_time = ConfigDict()
    c.test_time.arm, c.test_time.images = "failed", 2
    c.test_time.samplers = (
        "plain",
        "plain:guidance=8",
        "plain:steps=30",
        "reflect:rounds=2",
        "reflect:rounds=3",
        "reflect:rounds=2,inversion=0",
        "zigzag",
        "best:n=3",
        "best:n=5",
        "best_round:rounds=3",
        "best_reflect:n=2,rounds=2",
        "until:rounds=3",
        "until:rounds=5",
        "repair:rounds=5",
        "cycle:cycles=2,particles=3",
    )
    # Runs at once, with so many threads each.
    c.parallel, c.threads = 2, 1
    return c


def sweep() -> ConfigDict:
    """How may training through three rounds beat one round at equal evaluations? One change at a
    time, every sample trained, one seed. Of the arms that reflect only what fails, the stages are
    those that are paid for where every first round fails."""
    c = tiny()
    c.name, c.output_dir = "sweep", "runs/sweep"
    c.seeds, c.wordings = (310,), ""
    c.splits = ("heldout", "train")
    c.test_time.samplers, c.against, c.confirm = (), (), ()
    three = ("reflect.rounds=3",)
    failed = (*three, "reflect.when=failed")
    # Every round sampled and trained costs more: fewer prompts a stage.
    rounds = (*three, "reflect.train_rounds=all", "sample.batch_size=12")
    alone = (*three, "branch.count=1", "sample.batch_size=240", "reflect.reuse=4")
    thrifty = ("reflect.reuse=4", "reflect.num_steps=5", "reflect.inversion_guidance=0")
    changes = {
        "K1_every": ("K = 1, every sample trained", "reflect.rounds=1"),
        "K3_every": ("K = 3, every sample trained", *three),
        # Cheaper reflections.
        "reuse4": ("starts reused for 4 stages", *three, "reflect.reuse=4"),
        "reuse4_inv0": (
            "starts reused for 4 stages, invert at 0",
            *three,
            "reflect.reuse=4",
            "reflect.inversion_guidance=0",
        ),
        "steps5": ("5 steps in reflecting rounds", *three, "reflect.num_steps=5"),
        "thrifty": ("starts reused for 4 stages, of 5 steps, invert at 0", *three, *thrifty),
        "variance": ("prompts by their variance", *three, "prompts.draw=variance"),
        # Only what failed its first round.
        "failed": ("only what failed is reflected", *failed),
        "failed_clamp": ("only what failed, no credit below it", *failed, "reflect.clamp=true"),
        "failed_reuse4": ("only what failed, reused for 4 stages", *failed, "reflect.reuse=4"),
        "failed_two": ("only what failed, K = 2", *failed, "reflect.rounds=2"),
        "failed_steps5": (
            "only what failed, 5 steps in reflecting rounds",
            *failed,
            "reflect.num_steps=5",
        ),
        "failed_inv0": (
            "only what failed, invert at 0",
            *failed,
            "reflect.inversion_guidance=0",
        ),
        "failed_variance": (
            "only what failed, prompts by their variance",
            *failed,
            "prompts.draw=variance",
        ),
        "failed_lower": ("only what failed below 0.2", *failed, "reflect.threshold=0.2"),
        "failed_extremes": (
            "only what failed, extremes trained",
            *failed,
            "select.mode=extremes",
        ),
        # Whose credit a round's score is.
        "all": ("every round trained, by its own score", *rounds),
        "last": ("every round trained, by the last one's score", *rounds, "reward.rounds=last"),
        "mean": ("every round trained, by their mean score", *rounds, "reward.rounds=mean"),
        "linear": (
            "every round trained, by their mean score, later ones count more",
            *rounds,
            "reward.rounds=mean",
            "train.round_weights=linear",
        ),
        "alone": ("one start a sample, reused for 4 stages", *alone),
        "baseline": (
            "one start a sample, less half its first round's score",
            *alone,
            "reflect.baseline=0.5",
        ),
    }
    with c.unlocked():
        c.arms = {"ddpo": c.arms["ddpo"]} | {
            name: {"label": label, "preset": "", "values": ("select.mode=all", *values)}
            for name, (label, *values) in changes.items()
        }
    return c


def rig() -> ConfigDict:
    """What the phases of RL-RIG's training gain over the untrained loop, and beside what has no
    training at all."""
    c = ConfigDict()
    # As above: the table between the marks of this name in this document, made of the lines of
    # NAME.jsonl beside it.
    c.method, c.name, c.output_dir, c.report = "rig", "rig", "runs/rig_study", "docs/RIG.md"
    # A preset of config/rig.py, and values over it.
    c.preset = "tiny"
    c.overrides = ("eval.every=0", "pictures.every=1000", "checkpoint.keep_every=0")
    c.seeds = (300, 301, 302, 303, 304)
    # What is judged without training, "actor" among it; so many of the held-out prompts (0: all),
    # and pictures of each.
    c.ways = ("once", "again", "best", "plain", "actor", "expert", "inversion")
    c.num_prompts, c.images = 0, 4
    c.parallel, c.threads = 2, 1
    return c


def sd14() -> ConfigDict:
    c = tiny()
    c.output_dir, c.report = "runs/study_sd14", "runs/study_sd14/RESULTS.md"
    c.preset, c.stages, c.max_rounds = "sd14", 50, 10
    c.overrides = ("eval.every=0", "checkpoint.keep_every=0")
    c.rewards = ("vqascore", "imagereward", "clipscore")
    c.samplers = ("plain", "reflect:rounds=2", "reflect:rounds=3", "reflect:rounds=5")
    c.num_prompts, c.images = 32, 4
    c.wordings, c.splits = "", ("heldout", "train")
    c.test_time.samplers = (
        "plain",
        "plain:guidance=8",
        "plain:steps=60",
        "plain:steps=100",
        "reflect:rounds=2",
        "reflect:rounds=3",
        "best:n=3",
        "best:n=5",
        "zigzag:steps=10",
        "zigzag",
    )
    c.parallel, c.threads = 1, 0
    return c


PRESETS = {f.__name__: f for f in (tiny, sweep, rig, sd14)}


def get_config(name: str) -> ConfigDict:
    return PRESETS[name]()
