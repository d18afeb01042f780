"""Every knob of SRRL, and the presets.

    --config config/stage_process.py:sd14             a preset
    --config config/stage_process.py:tiny+ddpo        presets one over the other, left to right
    --config.sample.num_steps=50                      one value

The values of `base` and `sd14` are those of the released implementation where it follows the
method; what its scripts really run is `released`, and docs/FIDELITY.md lists every difference. The
results do not depend on any key marked [speed] beyond rounding, by which runs on a GPU may part.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    c = ConfigDict()

    # What is trained and how (srrl/methods.py); the other method has a file of its own.
    c.method = "srrl"
    # Name of the run: everything is written to output_dir/run_name.
    c.run_name = ""
    c.output_dir = "runs"
    # All randomness derives from it: LoRA start, prompts, noise, shuffling.
    c.seed = 300
    # Precision of the frozen weights and of the networks' arithmetic: "no" (float32), "fp16" or
    # "bf16". Trained weights, latents and log-probabilities are float32 in each.
    c.mixed_precision = "fp16"
    # [speed] Let GPUs round float32 products to TF32's 10 bits, as the released code does.
    c.allow_tf32 = True
    # [speed] Let GPUs use only algorithms that give the same sums every time: two runs of a command
    # are then the same bit for bit, as they always are on a CPU, and slower.
    c.deterministic = False
    # The longest, in seconds, that one of several processes waits for the others: the run then
    # ends in a line, and can go on. Above what one may take alone, as reward.worker.load_s.
    c.process_timeout = 1800.0
    # Experiment tracker through accelerate: "none", "wandb" or "tensorboard". The JSONL logs,
    # curves and pictures in the run's folder are written in any case.
    c.tracker = "wandb"
    # Say before the run what it will cost (docs/COSTS.md); counting takes some seconds.
    c.plan = True
    # Write report.html at the end: what scripts/report.py makes of the run.
    c.report = True

    c.pretrained = p = ConfigDict()
    # A Stable Diffusion or SDXL pipeline: a diffusers folder, a hub name (with its revision and
    # file variant), or a single .safetensors file, whose configs and tokenizers then come from
    # single_file_config (a folder or hub name; unset: the original model's on the hub).
    p.model = "CompVis/stable-diffusion-v1-4"
    p.revision = placeholder(str)
    p.variant = placeholder(str)
    p.single_file_config = placeholder(str)
    # Another VAE than the model's own: a VAE's or a pipeline's folder or hub name, or a
    # .safetensors file, which has no config and takes the model's scale. SDXL's overflows in fp16
    # and is kept in float32 there; madebyollin/sdxl-vae-fp16-fix does not and stays in fp16.
    p.vae = placeholder(str)
    # A LoRA to start from instead of a fresh one: a run, a checkpoint, or a .safetensors file of
    # diffusers, kohya-ss or peft. Of ranks up to lora.rank, on lora.target_modules.
    p.lora = placeholder(str)

    c.prompts = p = ConfigDict()
    # JSON lists of strings. Training draws from the first; the second is never trained on, only
    # evaluated ("none": there is none).
    p.train = "config/prompts/unlikely_activities_train.json"
    p.heldout = "config/prompts/unlikely_activities_heldout.json"
    # "passes": a stage's prompts are the next ones of endless shuffled passes over the file.
    # "replacement": each is drawn from the whole file (released code). "variance": those whose
    # scores have varied more of late, and those that have none yet, are drawn more often.
    p.draw = "passes"

    c.stages = s = ConfigDict()
    # Number of stages. One stage samples, scores, selects and updates once.
    s.total = 50
    # Stages in a cycle. Each cycle adds one round and walks the trained interval back once.
    s.per_cycle = 5
    # Stage n draws the prompts and noise of stage n mod this (released code: 5). Unset: its own.
    s.seed_cycle = placeholder(int)

    c.sample = s = ConfigDict()
    # T, the DDIM steps of every denoising and of every inversion.
    s.num_steps = 20
    # w of the sampled (trained) round. Below about 3 prompts are followed loosely.
    s.guidance_scale = 5.0
    # eta of the sampled round: 1 is DDPM-like noise; the policy gradient needs it above 0.
    s.eta = 1.0
    # A stage samples num_batches_per_stage x batch_size prompts. Their product matters for the
    # result; how it is split is [speed]: batch_size prompts run at once. One at a time are two
    # rows a network call, of which a GPU's time is all in launching; four take a quarter of the
    # calls (docs/COSTS.md).
    s.num_batches_per_stage = 8
    s.batch_size = 4
    # Side of the pictures in pixels. Unset: the model's own, 512 for SD v1.4, 1024 for SDXL.
    s.resolution = placeholder(int)
    # [speed] Most samples in one network call while sampling: bounds the memory.
    s.micro_batch = 16
    # [speed] Pictures decoded at once; 1 is what is called VAE slicing.
    s.decode_batch = 4

    c.branch = b = ConfigDict()
    # G, images per prompt: they share all steps but the last m, then diverge.
    b.count = 5

    c.interval = i = ConfigDict()
    # m, the trained last steps, goes left, ... towards right within a cycle:
    # m = left + i (right - left + 1) div per_cycle in the i-th stage of the cycle (1,5,9,13,17).
    i.left = 1
    i.right = 20
    # A number here fixes m for all stages instead.
    i.steps = placeholder(int)
    # The trained interval ends this many steps before the last: they belong to the branches but
    # are not trained. With few steps the last ones' tiny sigma makes their gradients dominate.
    i.skip_last = 0

    c.reflect = r = ConfigDict()
    # K, the rounds of a trajectory. Unset, K grows by one each cycle, from 1 up to max_rounds.
    r.rounds = placeholder(int)
    r.max_rounds = 10
    # Guidance and eta of the denoising in reflecting rounds, guidance of the inversion. The gap
    # between the two guidances is what a reflection carries into the next round's noise.
    r.denoise_guidance = 3.0
    r.inversion_guidance = 0.1
    r.eta = 0.0
    # Steps that the inversion walks back, and the next round denoises again. Unset: all of them, to
    # pure noise. No more than these (less interval.skip_last) can be trained then.
    r.depth = placeholder(int)
    # Steps of a reflecting round, evenly taken from the others. Unset: all of them.
    r.num_steps = placeholder(int)
    # A stage's reflections serve so many stages, its own and the next ones, which have the same
    # prompts and new branches.
    r.reuse = 1
    # "always", or only prompts whose first round "failed": the weighted sum of its scores is below
    # the threshold. The others are trained from where their first round began.
    r.when = "always"
    r.threshold = 1.0
    # No credit below the first round: after a failed one a score counts as that one's at least.
    r.clamp = False
    # What a first round scored, this many times, is taken from the score of what its reflection led
    # to, as a control variate. It cancels among the branches of one start: with branch.count=1.
    r.baseline = 0.0
    # "last": rounds before the last only reflect (released code). "all": every round is sampled
    # by the policy with sample.*, scored and trained (the paper's figure 2).
    r.train_rounds = "last"

    c.reward = r = ConfigDict()
    # Reward models and their weights, applied after each is standardised. See rewards/.
    r.models = {"vqascore": 1.0, "imagereward": 1.0}
    # Keywords of a reward's constructor, as {"vqascore": {"model": "zhiqiulin/clip-flant5-xxl"}}.
    r.options = ConfigDict()
    # "local": in this process. "worker": in a process of its own, which may have its own GPU,
    # interpreter or host, and scores while the next batch is sampled. "original": a worker with
    # the authors' own packages.
    r.backend = "local"
    # Where reward networks run (unset: where the policy does), and their precision on a GPU:
    # "fp32", "fp16" or "bf16". On a CPU they are float32.
    r.device = placeholder(str)
    r.dtype = "fp16"
    r.worker = w = ConfigDict()
    # The worker's interpreter (unset: this one), or the address of one that is running (HOST:PORT,
    # or a socket's path; see rewards/worker.py), which then is not started here.
    w.python = placeholder(str)
    w.address = placeholder(str)
    # Seconds that it has to load its models, and to score a batch. Then it is started again, twice.
    w.load_s = 1800.0
    w.batch_s = 600.0
    # With reflect.train_rounds "all": "all" scores every round's own image (process rewards),
    # "last" gives every round the advantage of the last round's image, "mean" that of the mean
    # score of its trajectory's images.
    r.rounds = "all"
    # H: a prompt's scores of the last H stages join its mean and std. More is steadier, less
    # follows the improving policy faster.
    r.history = 8

    c.select = s = ConfigDict()
    # "extremes": in each group of G the best branch if its advantage is at least pos_threshold,
    # the worst if below neg_threshold. "all": every sample is trained on.
    s.mode = "extremes"
    s.pos_threshold = 0.5
    s.neg_threshold = -0.5

    c.train = t = ConfigDict()
    # eps of the clipped objective. The log-probability is a mean over the latent's dimensions,
    # so ratios move by 1e-4 to 1e-3 and 0.1 rarely binds; DDPO uses 1e-4.
    t.clip_range = 0.1
    # Advantages are clamped to [-adv_clip_max, adv_clip_max].
    t.adv_clip_max = 5.0
    # Passes over the selected trajectories of a stage.
    t.num_inner_epochs = 2
    # Most trajectories (of m steps each) in one optimizer step.
    t.trajectories_per_update = 64
    # "even": each pass is split evenly into optimizer steps. "full": every step takes exactly
    # trajectories_per_update, across passes; what does not fill one is dropped, and of an odd
    # selection one trajectory in each pass (released code).
    t.updates = "even"
    # Weights of the positive and of the negative advantages in the objective.
    t.positive_weight = 1.0
    t.negative_weight = 1.0
    # With reflect.train_rounds "all", how much round k of K counts: "even", or "linear", k / K.
    t.round_weights = "even"
    # [speed] (trajectory, step) pairs in one forward and backward pass: bounds the memory.
    t.micro_batch = 4
    # [speed] Recompute activations in the backward pass: a third slower, far less memory.
    t.gradient_checkpointing = False
    # AdamW with states of 8 bits, by the package bitsandbytes: for use_lora=False on one GPU.
    t.use_8bit_adam = False
    # AdamW (arXiv 1711.05101).
    t.learning_rate = 1e-4
    # The learning rate falls linearly over the stages to this fraction of itself; 1: constant.
    t.final_lr_fraction = 1.0
    t.adam_beta1 = 0.9
    t.adam_beta2 = 0.999
    t.adam_weight_decay = 1e-4
    t.adam_epsilon = 1e-8
    # The gradient's norm is clipped to this.
    t.max_grad_norm = 1.0
    # Largest |ratio - 1| before a stage's first optimizer step. It is 0 in exact arithmetic;
    # beyond this sampling and training disagree and the run stops. Unset: 1e-4 in float32,
    # 2e-2 in half precision or with TF32.
    t.max_first_ratio_dev = placeholder(float)
    # So many updates of a run may have a loss or a gradient that is not finite: each is left out
    # and counted (`skipped` in metrics.jsonl). The next one ends the run.
    t.max_bad_steps = 0

    # Train a LoRA; False trains every weight of the UNet (for several GPUs see config/accelerate).
    c.use_lora = True
    c.lora = a = ConfigDict()
    # The update W + alpha / rank B A on the UNet's attention projections.
    a.rank = 4
    a.alpha = 4
    a.target_modules = ("to_q", "to_k", "to_v", "to_out.0")

    c.eval = e = ConfigDict()
    # Evaluate before training, every so many stages, and at the end. 0: never.
    e.every = 5
    # Evaluate prompts.heldout, too.
    e.heldout = True
    # Images per split: prompts (evenly taken from the file) x seeds, the same ones every time.
    e.num_prompts = 16
    e.seeds = 4
    # The first of these seeds; they are apart from the run's own randomness.
    e.first_seed = 1_000_000
    # The evaluation's numbers of rounds K, each judged; sampling otherwise as in sample.*.
    e.rounds = (1,)
    # What names the best stage (`--checkpoint RUN:best`), as "heldout:1": a split and one of
    # rounds. Unset: held-out prompts where they are evaluated, the most rounds.
    e.best = placeholder(str)

    c.checkpoint = k = ConfigDict()
    # Save every so many stages, and at the end. A killed run resumes from the newest.
    k.every = 1
    # Weights are kept of every evaluated stage, and of every so many (0: of no others).
    k.keep_every = 5
    # Where the newest cannot be trusted (its files are not what was written): "back" goes on from
    # the one before it and says so; "stop" is an error.
    k.damaged = "back"

    c.pictures = p = ConfigDict()
    # Write samples/stage_*.png every so many stages, of so many prompts.
    p.every = 5
    p.prompts = 6
    # Save every image that was scored, as images/stage_*/*.png. samples.jsonl has its scores.
    p.images = False
    c.lock()  # a preset's mistyped key is an error
    return c


def sd14(c: ConfigDict) -> None:
    """Stable Diffusion v1.4 at 512 px on one or more GPUs, with the method's rewards."""
    c.run_name = "sd14"


def sdxl(c: ConfigDict) -> None:
    """SDXL base 1.0 at 1024 px, with the method's rewards."""
    c.run_name = "sdxl"
    c.pretrained.model = "stabilityai/stable-diffusion-xl-base-1.0"
    c.sample.micro_batch = 8
    c.sample.decode_batch = 1
    c.train.micro_batch = 2


def tiny(c: ConfigDict) -> None:
    """The embedded pipeline: the whole job in minutes on 2 CPU cores.

    Differs from sd14 where the size demands it: fewer steps, stages and reflections; a larger
    learning rate for a LoRA of 33 thousand parameters; the embedded world's prompts and verifier.
    """
    c.run_name = "tiny"
    c.mixed_precision = "no"
    c.tracker = "none"
    c.pretrained.model = "srrl/shapes/tiny_sd"
    c.prompts.train = "config/prompts/shapes_unconventional_train.json"
    c.prompts.heldout = "config/prompts/shapes_unconventional_heldout.json"
    c.reward.models = {"shapes": 1.0}
    c.stages.total = 16
    c.sample.num_steps = 10
    c.sample.num_batches_per_stage = 1
    c.sample.batch_size = 48
    c.sample.micro_batch = 64
    c.sample.decode_batch = 64
    # Of 10 steps the first 6 decide what is drawn; the last 4 only sharpen it (docs/LOG.md).
    c.interval.left = 6
    c.interval.right = 6
    c.interval.skip_last = 4
    # In 10 steps a deterministic picture at 3.0 is little to reflect on: a stochastic one at 8.0
    # gains far more (docs/LOG.md).
    c.reflect.denoise_guidance = 8.0
    c.reflect.eta = 1.0
    # K grows to 3 in the first 4 stages: growing over the whole run scored lowest, at equal
    # evaluations. What succeeds at once is not reflected. The choice of extremes costs score: after
    # reflections fewer groups differ, and all samples teach more (docs/LOG.md).
    c.stages.per_cycle = 2
    c.reflect.max_rounds = 3
    c.reflect.when = "failed"
    c.reflect.threshold = 0.5
    c.select.mode = "all"
    # A second pass costs as much as sampling and teaches less than fresh samples.
    c.train.num_inner_epochs = 1
    c.train.learning_rate = 3e-3
    # At a constant rate the score stops rising after 30 stages: the noise of the updates.
    c.train.final_lr_fraction = 0.0
    # Latents have 256 dimensions here against 16,384, and ratios move further.
    c.train.clip_range = 0.01
    c.train.trajectories_per_update = 40
    c.train.micro_batch = 32
    c.eval.every = 8
    c.eval.num_prompts = 64
    c.eval.seeds = 2
    c.eval.rounds = (1, 2, 3)
    c.pictures.every = 8


def tiny_xl(c: ConfigDict) -> None:
    """The embedded SDXL pipeline. It learns slower than `tiny`: twice the stages, and all reflected
    (docs/LOG.md)."""
    tiny(c)
    c.run_name = "tiny_xl"
    c.pretrained.model = "srrl/shapes/tiny_sdxl"
    c.stages.total = 32
    c.stages.per_cycle = 5
    c.reflect.when = "always"


def ddpo(c: ConfigDict) -> None:
    """Baseline DDPO (arXiv 2305.13301): one round, no branching, every step of every sample."""
    c.run_name += "_ddpo"
    c.reflect.rounds = 1
    c.interval.steps = c.sample.num_steps - c.interval.skip_last
    c.sample.num_batches_per_stage *= c.branch.count  # as many images a stage as with branches
    c.branch.count = 1
    c.select.mode = "all"


def b2diffurl(c: ConfigDict) -> None:
    """Baseline B2-DiffuRL (arXiv 2503.11240): branching and the interval curriculum, one round."""
    c.run_name += "_b2diffurl"
    c.reflect.rounds = 1
    c.select.mode = "extremes"


def selective(c: ConfigDict) -> None:
    """Only prompts whose first round fails are reflected, and every sample is trained: a quarter
    less reflecting. On the embedded model some seeds end far above DDPO at equal evaluations and
    some far below (docs/RESULTS.md); not measured at full size."""
    c.run_name += "_selective"
    c.reflect.when = "failed"
    c.select.mode = "all"


def srrl_paper(c: ConfigDict) -> None:
    """The paper's figure: every round is sampled, scored and trained, with process rewards."""
    c.run_name += "_paper"
    c.reflect.when = "always"
    c.reflect.train_rounds = "all"


def released(c: ConfigDict) -> None:
    """What the released scripts run, as far as config reaches: CLIP as the only reward, prompts and
    noise that repeat, and optimizer steps that drop what does not fill one (docs/FIDELITY.md)."""
    c.run_name += "_released"
    c.reward.models = {"clipscore": 1.0}
    c.reflect.when = "always"
    c.select.mode = "extremes"
    c.prompts.draw = "replacement"
    c.stages.seed_cycle = 5
    c.train.updates = "full"


# One of these chooses the model and comes first; the others go over it.
MODELS = {f.__name__: f for f in (sd14, sdxl, tiny, tiny_xl)}
PRESETS = MODELS | {f.__name__: f for f in (ddpo, b2diffurl, selective, srrl_paper, released)}


def get_config(names: str) -> ConfigDict:
    """The config of presets joined by "+"; sd14 if none of them chooses a model. Raises ValueError
    for a model that is not the first."""
    chosen = names.split("+")
    for name in chosen[1:]:
        if name in MODELS:
            raise ValueError(f"{name} chooses a model: it comes first, and once")
    c = base()
    for name in chosen if chosen[0] in MODELS else ["sd14", *chosen]:
        PRESETS[name](c)
    return c
