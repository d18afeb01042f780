"""Every knob of RL-RIG (arXiv 2602.19974): generate, reflect, edit; and the presets.

    --config config/rig.py:tiny              a preset
    --config.loop.rounds=2                   one value

For scripts/rig.py. The results do not depend on any key marked [speed] beyond rounding.
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
    # Of the first picture of `rig.py draw`; evaluation has its own. All randomness derives from it:
    # the pictures' noise, and what the actor writes.
    c.seed = 300
    # Precision of the networks on a GPU: "no" (float32), "fp16" or "bf16".
    c.mixed_precision = "bf16"
    # [speed] Let GPUs round float32 products to TF32's 10 bits.
    c.allow_tf32 = True
    # [speed] Let GPUs use only algorithms that give the same sums every time.
    c.deterministic = False

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
    # [speed] Most samples in one network call, pictures decoded at once. They bound the memory.
    s.micro_batch = 16
    s.decode_batch = 4

    c.editor = e = ConfigDict()
    # "instruct": an InstructPix2Pix model, which is shown the picture. "inversion": any
    # text-to-image model (the paper's Inverse Diffuser): the picture goes back to noise and is
    # drawn again under the edit prompt.
    e.kind = "instruct"
    # Of "instruct": a diffusers folder or hub name. "inversion" has the Diffuser's own model.
    e.model = "timbrooks/instruct-pix2pix"
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
    a.side = placeholder(int)
    a.batch_size = 8
    # Of its sampling. And the most tokens of a completion.
    a.temperature = 1.0
    a.max_tokens = 256

    c.loop = p = ConfigDict()
    # T, the most rounds of an edit and a check after the first picture.
    p.rounds = 3
    # "best": an edit that passes fewer requirements is undone. "last": the last picture counts.
    p.keep = "best"

    c.prompts = p = ConfigDict()
    # What is drawn for evaluation: a file of prompts, each a scene graph in words ("a cat on a mat;
    # wooden table"), or of LAION-SG's rows (.json or .jsonl).
    p.heldout = "config/prompts/rig_heldout.json"

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
    c.prompts.heldout = "config/prompts/shapes_unconventional_heldout.json"
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
