"""Every knob of RL-RIG (arXiv 2602.19974): generate, reflect, edit; and the presets.

    --config config/rig.py:tiny              a preset
    --config.loop.rounds=2                   one value

For train_rig.sh and scripts/rig.py. The results do not depend on any key marked [speed] beyond
rounding.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    c = ConfigDict()

    # What is run (srrl/methods.py).
    c.method = "rig"
    # Everything is written to output_dir/run_name, unless a command says otherwise.
    c.run_name = ""
    c.output_dir = "runs"
    # Of training, and of the first picture of `rig.py draw`; evaluation has its own. All randomness
    # derives from it: LoRA start, prompts, the pictures' noise, what the actor writes.
    c.seed = 300
    # Precision of the networks on a GPU: "no" (float32), "fp16" or "bf16".
    c.mixed_precision = "bf16"
    # [speed] Let GPUs round float32 products to TF32's 10 bits.
    c.allow_tf32 = True
    # [speed] Let GPUs use only algorithms that give the same sums every time.
    c.deterministic = False
    # Of training by several processes, as in config/stage_process.py.
    c.process_timeout = 1800.0
    # Experiment tracker of training, as in config/stage_process.py.
    c.tracker = "wandb"
    # Write report.html at the end of training.
    c.report = True

    # The Diffuser, which draws the first picture and is never trained: as in
    # config/stage_process.py.
    c.pretrained = p = ConfigDict()
    p.model = "CompVis/stable-diffusion-v1-4"
    p.revision = placeholder(str)
    p.variant = placeholder(str)
    p.single_file_config = placeholder(str)
    p.vae = placeholder(str)

    # How it draws: steps, guidance scale w, eta, and the side of the pictures (unset: the model's).
    c.sample = s = ConfigDict()
    s.num_steps = 20
    s.guidance_scale = 5.0
    s.eta = 1.0
    s.resolution = placeholder(int)
    # A stage of training draws num_batches_per_stage x batch_size prompts; how their product is
    # split is [speed].
    s.num_batches_per_stage = 2
    s.batch_size = 8
    # [speed] Most samples in one network call, pictures decoded at once. They bound the memory.
    s.micro_batch = 16
    s.decode_batch = 4

    c.editor = e = ConfigDict()
    # "instruct": an InstructPix2Pix model, which is shown the picture. "inversion": any
    # text-to-image model (the paper's Inverse Diffuser): the picture goes back to noise and is
    # drawn again under the edit prompt.
    e.kind = "instruct"
    # Of "instruct": a diffusers folder or hub name, or "random:sd14". "inversion" has the
    # Diffuser's own model.
    e.model = "timbrooks/instruct-pix2pix"
    # Its LoRA: a run, a checkpoint or a .safetensors file. Phase 2 starts from it.
    e.lora = placeholder(str)
    # Steps of an edit, guidance scale of the edit prompt, eta. Phase 2 needs eta above 0.
    e.num_steps = 20
    e.guidance_scale = 7.5
    e.eta = 1.0
    # Of "instruct": the guidance scale of the picture. At 1 a step takes two evaluations of the
    # network, else three.
    e.image_guidance = 1.5
    # Of "inversion" (as a way beside "instruct" it draws as the Diffuser does): guidance from the
    # picture's own prompt while it goes back, and over how many of the steps (unset: all, to pure
    # noise).
    e.inversion_guidance = 0.1
    e.depth = placeholder(int)

    # The Checker: a VLM that judges each requirement. "embedded", or a folder or hub name of a Qwen
    # vision-language model.
    c.checker = k = ConfigDict()
    k.model = "Qwen/Qwen2.5-VL-7B-Instruct"
    # "yesno": by P(yes) of each question. "lookup": by whether the scene graph that it describes
    # has what is required.
    k.form = "yesno"
    # P(yes) above which a requirement passes.
    k.threshold = 0.5
    # Pictures are scaled to so many pixels for it (unset: as they are).
    k.side = placeholder(int)
    # [speed] Rows of one of its calls.
    k.batch_size = 8

    # The Actor: a VLM that writes edit prompts. Of the same model as the Checker it is loaded once
    # ("embedded" are two).
    c.actor = a = ConfigDict()
    a.model = "Qwen/Qwen2.5-VL-7B-Instruct"
    # Its LoRA: a run, a checkpoint or a folder of peft's. Phase 1 starts from it; phase 2 takes
    # what phase 1 has trained, if that is trained, too.
    a.lora = placeholder(str)
    a.side = placeholder(int)
    a.batch_size = 32
    # Of its sampling. And the most tokens of a completion.
    a.temperature = 1.0
    a.max_tokens = 256

    c.loop = p = ConfigDict()
    # T, the most rounds of an edit and a check after the first picture.
    p.rounds = 3
    # "best": an edit that passes fewer requirements is undone. "last": the last picture counts.
    p.keep = "best"

    c.prompts = p = ConfigDict()
    # Files of prompts, each a scene graph in words ("a cat on a mat; wooden table"), or of
    # LAION-SG's rows (.json or .jsonl). Training draws from the first; the second is only
    # evaluated.
    p.train = "config/prompts/rig_train.json"
    p.heldout = "config/prompts/rig_heldout.json"
    # "passes": a stage's prompts are the next ones of endless shuffled passes over the file.
    # "replacement": each is drawn from the whole file.
    p.draw = "passes"

    # Reflection-GRPO: which phases are trained, one after the other. "actor": what is written, for
    # a fixed editor. "editor": what it makes of fixed pictures and edit prompts. The only reward is
    # the share of requirements that the checker passes. A phase is a run of its own, below
    # output_dir/run_name.
    c.phases = ("actor", "editor")
    c.phase = ConfigDict()
    c.phase.actor = a = ConfigDict()
    a.stages = 40
    # The first pictures that fail are edited, and what this leaves, for so many rounds; each that
    # fails is a state.
    a.rounds = 2
    # N, completions of a state. They are edited under the same noise.
    a.group = 6
    # lambda_form: what an answer of the right form earns besides. 0 is the paper.
    a.form_weight = 0.1
    # eps of the clipped objective of a token's ratio, below 1 and above (arXiv 2503.14476).
    a.clip_range = 0.2
    a.clip_range_high = 0.28
    # beta of the KL divergence (k3) from the actor without its LoRA.
    a.kl_weight = 0.0
    # Completions of an optimizer step, at most; [speed] of a forward and backward pass.
    a.trajectories_per_update = 64
    a.micro_batch = 2
    a.learning_rate = 1e-4
    c.phase.editor = e = ConfigDict()
    e.stages = 40
    e.rounds = 2
    # G, edits of a state, each under noise of its own from the start.
    e.group = 6
    # lambda of the likeness that an edit's reward has besides: of the half of the picture that
    # changed least, 1 where none of it did.
    e.likeness_weight = 0.0
    # The trained steps of an edit: so many, before the last `skip_last`.
    e.trained_steps = 20
    e.skip_last = 0
    e.clip_range = 0.1
    e.trajectories_per_update = 64
    e.micro_batch = 4
    e.learning_rate = 1e-4

    # Of both phases. Those that are unset are the phase's own; set they hold for both.
    c.stages = s = ConfigDict()
    s.total = placeholder(int)
    c.train = t = ConfigDict()
    t.learning_rate = placeholder(float)
    t.micro_batch = placeholder(int)
    t.trajectories_per_update = placeholder(int)
    # Leave out groups in which no edit passes more than the picture did. Those whose rewards are
    # all equal teach nothing, and are left out in any case.
    t.need_gain = True
    # Advantages are clamped to [-adv_clip_max, adv_clip_max].
    t.adv_clip_max = 5.0
    # A phase ends where, on held-out prompts, the checker passes more than when the truth was best
    # (the exact share in the shapes world, else the first judge) and the truth has fallen since,
    # both by more than their 95% intervals. Otherwise it is only said.
    t.stop_on_heldout = False
    # As in config/stage_process.py.
    t.num_inner_epochs = 1
    t.updates = "even"
    t.gradient_checkpointing = False
    t.use_8bit_adam = False
    t.final_lr_fraction = 1.0
    t.adam_beta1 = 0.9
    t.adam_beta2 = 0.999
    t.adam_weight_decay = 1e-4
    t.adam_epsilon = 1e-8
    t.max_grad_norm = 1.0
    t.max_first_ratio_dev = placeholder(float)
    # So many updates of a run may have a loss or a gradient that is not finite: each is left out
    # and counted (`skipped` in metrics.jsonl). The next one ends the run.
    t.max_bad_steps = 0

    c.lora = a = ConfigDict()
    # The update W + alpha / rank B A: on all linear layers of the actor's language model, and on
    # these of the editor's network.
    a.rank = 16
    a.alpha = 16
    a.target_modules = ("to_q", "to_k", "to_v", "to_out.0")

    # During training, as in config/stage_process.py; rounds: of the loop, each number is judged.
    c.eval = e = ConfigDict()
    e.every = 10
    e.heldout = True
    e.num_prompts = 16
    e.seeds = 2
    e.first_seed = 1_000_000
    e.rounds = (3,)
    e.best = placeholder(str)
    c.checkpoint = k = ConfigDict()
    k.every = 1
    k.keep_every = 10
    # Where the newest cannot be trusted (its files are not what was written): "back" goes on from
    # the one before it and says so; "stop" is an error.
    k.damaged = "back"
    c.pictures = p = ConfigDict()
    p.every = 10
    p.prompts = 4
    p.images = False

    c.evaluate = e = ConfigDict()
    # Pictures of each prompt, the first one's seed, and [speed] prompts at once.
    e.images = 4
    e.first_seed = 3_000_000
    e.batch_size = 32
    # Ways that are compared, see scripts/rig.py.
    e.ways = ("once", "again", "best", "plain", "actor")
    # Scene graphs are also extracted from the final pictures by the checker's VLM.
    e.extract = True

    # The judge: rewards that score the final pictures, as in config/stage_process.py. Not the
    # checker's own model: a loop is good in the eyes of its own checker.
    c.reward = r = ConfigDict()
    r.models = {"vqascore": 1.0}
    r.options = ConfigDict()
    r.backend = "local"
    r.device = placeholder(str)
    r.dtype = "fp16"
    r.worker = w = ConfigDict()
    w.python = placeholder(str)
    w.address = placeholder(str)
    # Seconds that it has to load its models, and to score a batch. Then it is started again, twice.
    w.load_s = 1800.0
    w.batch_s = 600.0
    return c


def sd14(c: ConfigDict) -> None:
    """SD v1.4 at 512 px with InstructPix2Pix and Qwen2.5-VL-7B."""
    c.run_name = "rig_sd14"


def sdxl(c: ConfigDict) -> None:
    """SDXL base 1.0 and its InstructPix2Pix, at the latter's 768 px."""
    c.run_name = "rig_sdxl"
    c.pretrained.model = "stabilityai/stable-diffusion-xl-base-1.0"
    c.editor.model = "diffusers/sdxl-instructpix2pix-768"
    c.editor.guidance_scale = 3.0
    c.sample.resolution = 768
    c.phase.editor.micro_batch = 2
    c.sample.micro_batch = 8
    c.sample.decode_batch = 1


def tiny(c: ConfigDict) -> None:
    """The embedded world: all parts on a CPU."""
    c.run_name = "rig_tiny"
    c.mixed_precision = "no"
    c.pretrained.model = "srrl/shapes/tiny_sd"
    c.sample.num_steps = 10
    c.sample.micro_batch = 64
    c.sample.decode_batch = 64
    c.editor.model = "srrl/shapes/tiny_editor"
    c.editor.num_steps = 10
    c.editor.guidance_scale = 3.0
    # 3 evaluations a step are no better here than 2 (docs/LOG.md).
    c.editor.image_guidance = 1.0
    for part in (c.checker, c.actor):
        part.model = "embedded"
        part.batch_size = 64
    c.actor.max_tokens = 64
    c.tracker = "none"
    c.prompts.train = "config/prompts/shapes_unconventional_train.json"
    c.prompts.heldout = "config/prompts/shapes_unconventional_heldout.json"
    c.sample.num_batches_per_stage = 1
    c.sample.batch_size = 24
    a, e = c.phase.actor, c.phase.editor
    a.stages, e.stages = 16, 12
    a.group, e.group = 8, 8
    a.micro_batch, e.micro_batch = 32, 32
    e.rounds, e.trajectories_per_update = 1, 16
    # A fifth of it teaches the actor little in so many stages (docs/LOG.md).
    a.learning_rate, e.learning_rate = 3e-3, 3e-3
    # Where nothing passes more, worse than others is a lesson, too (docs/LOG.md).
    c.train.need_gain = False
    # As in `tiny` of config/stage_process.py: the first steps decide what is drawn.
    e.trained_steps, e.skip_last, e.clip_range = 6, 4, 0.01
    c.train.final_lr_fraction = 0.1
    c.eval.every = 8
    c.eval.num_prompts = 32
    c.eval.seeds = 1
    c.pictures.every = 8
    c.evaluate.batch_size = 64
    c.evaluate.ways = (
        "once",
        "again",
        "best",
        "plain",
        "actor",
        "expert",
        "inversion",
    )
    c.reward.models = {"judge": 1.0}


PRESETS = {f.__name__: f for f in (sd14, sdxl, tiny)}


def get_config(name: str) -> ConfigDict:
    c = base()
    PRESETS[name](c)
    return c
