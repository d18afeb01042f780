"""The study "does reflection pay?": its arms, seeds and budgets, for scripts/study.py.

    --config config/study.py:tiny     the embedded models, on a laptop
    --config config/study.py:control  is it the rounds, or training every sample?
    --config config/study.py:sweep    one thing changed at a time, where training reflects
    --config config/study.py:less     what training needs of its reflections
    --config config/study.py:credit   whose credit a round's score is
    --config config/study.py:hard     where a first try almost never succeeds
    --config config/study.py:sd14     Stable Diffusion v1.4, on GPUs
    --config config/study.py:rig      RL-RIG's phases

An arm is a way to train: presets and values over the study's own, as in config/stage_process.py.
The reference arm has `stages` stages. With the budget "images" every arm has as many stages as give
the reference's number of images; with "evaluations" as many as take its network evaluations.
"""

from ml_collections import ConfigDict


def tiny() -> ConfigDict:
    c = ConfigDict()
    # Runs and evaluations are below it. In the document the tables between the marks of this name,
    # of these splits ("heldout", "train" or "all"), and its plots are written anew. NAME.csv
    # beside the document keeps what is made of each run, and the tables are made from it.
    c.name, c.output_dir = "study", "runs/study"
    c.report, c.splits = "docs/RESULTS.md", ("heldout", "train")
    # What all arms share: a preset of config/stage_process.py and values over it.
    c.preset = "tiny"
    c.overrides = ("eval.every=0", "pictures.every=1000", "checkpoint.keep_every=0")
    c.seeds = (300, 301, 302, 303, 304)
    c.budgets = ("images", "evaluations")
    c.reference, c.stages = "K1", 16
    # K of "growing" arms goes up to this, in stages of equal number.
    c.max_rounds = 3
    # What each arm is called in the tables, its preset and its values over it. "chosen" says how it
    # was where that was not before any run, and marks it there.
    extremes = "select.mode=extremes"
    c.arms = {
        "K1": {"label": "K = 1 (B2-DiffuRL)", "preset": "b2diffurl", "values": ()},
        "K1_every": {
            "label": "K = 1, every sample trained",
            "preset": "",
            "values": ("reflect.rounds=1", "select.mode=all"),
            "chosen": "later by no score, as the control of K = 3 with every sample trained",
        },
        "ddpo": {"label": "DDPO", "preset": "ddpo", "values": ()},
        "K2": {"label": "SRRL, K = 2", "preset": "", "values": ("reflect.rounds=2", extremes)},
        "K3": {"label": "SRRL, K = 3", "preset": "", "values": ("reflect.rounds=3", extremes)},
        "K3_every": {
            "label": "SRRL, K = 3, every sample trained",
            "preset": "",
            "values": ("reflect.rounds=3", "select.mode=all"),
            "chosen": "after a look at seed 300",
        },
        "grow": {"label": "SRRL, K grows", "preset": "", "values": (extremes,)},
        "all2": {
            "label": "SRRL, process rewards, K = 2",
            "preset": "srrl_paper",
            "values": ("reflect.rounds=2", extremes),
        },
    }
    # Every arm is also compared with these, seed by seed, and once more by the seeds `confirm`
    # alone: those that did not choose the arms (300 did, in the sweep).
    c.against, c.confirm = ("K1", "ddpo", "K1_every"), (301, 302, 303, 304)
    # How each trained policy is judged: the rewards, the first of which it was trained on, ways of
    # sampling, and images of each of so many prompts of each split.
    c.rewards = ("shapes", "judge")
    c.samplers = ("plain", "reflect:rounds=2", "reflect:rounds=3")
    c.num_prompts, c.images = 64, 2
    # Further ways to sample from the reference arm's first run, images of every held-out prompt.
    c.test_time = ConfigDict()
    c.test_time.images = 4
    c.test_time.samplers = (
        "plain",
        "plain:guidance=8",
        "plain:guidance=12",
        "plain:steps=30",
        "plain:steps=50",
        "reflect:rounds=2",
        "reflect:rounds=3",
        "reflect:rounds=2,guidance=8",
        "reflect:rounds=2,eta=0",
        "reflect:rounds=2,denoise=5",
        "reflect:rounds=2,inversion=0",
        "reflect:rounds=2,depth=6",
        "best:n=3",
        "best:n=5",
        "zigzag:steps=5",
        "zigzag",
        "until:rounds=3,threshold=0.5",
        "until:rounds=5,threshold=0.5",
    )
    # Runs at once, with so many threads each.
    c.parallel, c.threads = 2, 1
    return c


def sweep() -> ConfigDict:
    """Where may training through a reflection pay? One thing changed at a time, at equal
    evaluations, one seed: guidances of the reflection, its depth, its eta, who is rewarded, what is
    trained."""
    c = tiny()
    c.name, c.output_dir, c.splits = "sweep", "runs/sweep", ("all",)
    c.seeds, c.budgets = (300,), ("evaluations",)
    c.test_time.samplers, c.against, c.confirm = (), (), ()
    c.overrides += ("select.mode=extremes",)
    changes = {
        "K1": ("K = 1", "reflect.rounds=1"),
        "K1_many": ("K = 1, 96 prompts a stage", "reflect.rounds=1", "sample.batch_size=96"),
        "K2": ("K = 2 as the preset is", "reflect.rounds=2"),
        "grow": ("K grows to 3",),
        "grow_fresh": ("K grows to 3, no scores of earlier stages", "reward.history=0"),
        "K1_every": ("K = 1, every sample trained", "reflect.rounds=1", "select.mode=all"),
        "K2_every": ("every sample trained", "reflect.rounds=2", "select.mode=all"),
        "K3_every": ("K = 3, every sample trained", "reflect.rounds=3", "select.mode=all"),
        "grow_every": ("K grows to 3, every sample trained", "select.mode=all"),
        "K3_every_inv0": (
            "K = 3, every sample trained, invert at 0",
            "reflect.rounds=3",
            "select.mode=all",
            "reflect.inversion_guidance=0",
        ),
        "K3_every_10": (
            "K = 3, every sample trained, 10 branches of 24 prompts",
            "reflect.rounds=3",
            "select.mode=all",
            "branch.count=10",
            "sample.batch_size=24",
        ),
        "single": (
            "no branches, every sample trained, 96 prompts a stage",
            "reflect.rounds=2",
            "select.mode=all",
            "branch.count=1",
            "sample.batch_size=96",
        ),
        "pairs": (
            "2 branches, every sample trained, 90 prompts a stage",
            "reflect.rounds=2",
            "select.mode=all",
            "branch.count=2",
            "sample.batch_size=90",
        ),
        "eta0": ("reflect at eta 0", "reflect.rounds=2", "reflect.eta=0"),
        "gap3": ("denoise at 3", "reflect.rounds=2", "reflect.denoise_guidance=3"),
        "gap5": ("denoise at 5", "reflect.rounds=2", "reflect.denoise_guidance=5"),
        "inv0": ("invert at 0", "reflect.rounds=2", "reflect.inversion_guidance=0"),
        "inv1": ("invert at 1", "reflect.rounds=2", "reflect.inversion_guidance=1"),
        "inv3": ("invert at 3", "reflect.rounds=2", "reflect.inversion_guidance=3"),
        "m4": ("train 4 steps, not 6", "reflect.rounds=2", "interval.steps=4"),
        "depth8": (
            "8 of 10 steps back, train 4",
            "reflect.rounds=2",
            "reflect.depth=8",
            "interval.steps=4",
        ),
        "all": ("process rewards", "reflect.rounds=2", "reflect.train_rounds=all"),
        "all3": (
            "process rewards, K = 3, 24 prompts a stage",
            "reflect.rounds=3",
            "reflect.train_rounds=all",
            "sample.batch_size=24",
        ),
        "all_few": (
            "process rewards, 24 prompts a stage",
            "reflect.rounds=2",
            "reflect.train_rounds=all",
            "sample.batch_size=24",
        ),
        "all_inv0": (
            "process rewards, invert at 0",
            "reflect.rounds=2",
            "reflect.train_rounds=all",
            "reflect.inversion_guidance=0",
        ),
        "all_last": (
            "all rounds, the last one's reward",
            "reflect.rounds=2",
            "reflect.train_rounds=all",
            "reward.rounds=last",
        ),
    }
    with c.unlocked():
        c.arms = {
            name: {"label": label, "preset": "", "values": tuple(values)}
            for name, (label, *values) in changes.items()
        }
    return c


def less() -> ConfigDict:
    """Does training through three rounds beat one round where reflecting costs less? One economy at
    a time, every sample trained, at equal evaluations, one seed. Of the arms that reflect only what
    fails, the stages are those that are paid for where every first round fails."""
    c = tiny()
    c.name, c.output_dir, c.splits = "less", "runs/less", ("heldout", "train")
    c.seeds, c.budgets, c.reference = (310,), ("evaluations",), "ddpo"
    c.stages = 12
    c.test_time.samplers, c.against, c.confirm = (), (), ()
    every = ("reflect.rounds=3", "select.mode=all")
    failed = (*every, "reflect.when=failed")
    one = ("reflect.rounds=1", "select.mode=all")
    changes = {
        "K1_every": ("K = 1, every sample trained", one),
        "K3_every": ("K = 3, every sample trained", every),
        "reuse4": ("starts reused for 4 stages", (*every, "reflect.reuse=4")),
        "reuse4_inv0": (
            "starts reused for 4 stages, invert at 0",
            (*every, "reflect.reuse=4", "reflect.inversion_guidance=0"),
        ),
        "steps5": ("5 steps in reflecting rounds", (*every, "reflect.num_steps=5")),
        "failed": ("only what failed is reflected", failed),
        "failed_clamp": (
            "only what failed, no credit below its first round",
            (*failed, "reflect.clamp=true"),
        ),
        "variance": ("prompts by their variance", (*every, "prompts.draw=variance")),
        "failed_reuse4": ("only what failed, reused for 4 stages", (*failed, "reflect.reuse=4")),
    }
    with c.unlocked():
        c.arms = {"ddpo": c.arms["ddpo"]} | {
            name: {"label": label, "preset": "", "values": values}
            for name, (label, values) in changes.items()
        }
    return c


def credit() -> ConfigDict:
    """Whose credit is a round's score? As `less`, where every round is sampled and trained, with
    fewer prompts a stage, for these rounds cost more; and a first round as a control variate."""
    c = less()
    c.name, c.output_dir = "credit", "runs/credit"
    few = (
        "reflect.rounds=3",
        "select.mode=all",
        "reflect.train_rounds=all",
        "sample.batch_size=12",
    )
    alone = (
        "reflect.rounds=3",
        "select.mode=all",
        "branch.count=1",
        "sample.batch_size=240",
        "reflect.reuse=4",
    )
    changes = {
        "all": ("each round by its own score", few),
        "last": ("all rounds by the last one's score", (*few, "reward.rounds=last")),
        "mean": ("all rounds by their mean score", (*few, "reward.rounds=mean")),
        "linear": (
            "by their mean score, later rounds count more",
            (*few, "reward.rounds=mean", "train.round_weights=linear"),
        ),
        "alone": ("one start a sample, reused for 4 stages", alone),
        "baseline": (
            "one start a sample, less half its first round's score",
            (*alone, "reflect.baseline=0.5"),
        ),
        "thrifty": (
            "starts reused for 4 stages, of 5 steps, invert at 0",
            (
                "reflect.rounds=3",
                "select.mode=all",
                "reflect.reuse=4",
                "reflect.num_steps=5",
                "reflect.inversion_guidance=0",
            ),
        ),
    }
    with c.unlocked():
        c.arms = {"ddpo": c.arms["ddpo"]} | {
            name: {"label": label, "preset": "", "values": values}
            for name, (label, values) in changes.items()
        }
    return c


def control() -> ConfigDict:
    """Is it the rounds or is it training every sample? K = 1 and K = 3 with every sample, beside
    K = 1 with extremes; the runs are those of `tiny`."""
    c = tiny()
    c.name, c.test_time.samplers = "control", ()
    c.against = ("K1", "K1_every")
    with c.unlocked():
        c.arms = {name: c.arms[name] for name in ("K1", "K1_every", "K3_every")}
    return c


def hard() -> ConfigDict:
    """Where a first try almost never succeeds, and the reward says only whether: at guidance 2 the
    untrained model draws 4 right pictures in 100 with K = 1 and 20 with K = 2."""
    c = tiny()
    c.name, c.output_dir, c.splits = "hard", "runs/hard", ("heldout", "train")
    c.overrides += (
        "sample.guidance_scale=2",
        'reward.options={"shapes": {"success": 0.5}}',
    )
    c.seeds, c.budgets = (300, 301), ("evaluations",)
    c.test_time.samplers, c.against, c.confirm = (), (), ()
    with c.unlocked():
        c.arms = {name: c.arms[name] for name in ("K1", "K2", "K3", "all2")}
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
    c.preset, c.stages, c.max_rounds, c.confirm = "sd14", 50, 10, ()
    c.overrides = ("eval.every=0", "checkpoint.keep_every=0")
    c.rewards = ("vqascore", "imagereward", "clipscore")
    c.samplers = ("plain", "reflect:rounds=2", "reflect:rounds=3", "reflect:rounds=5")
    c.num_prompts, c.images = 32, 4
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


PRESETS = {f.__name__: f for f in (tiny, control, sweep, less, credit, hard, rig, sd14)}


def get_config(name: str) -> ConfigDict:
    return PRESETS[name]()
