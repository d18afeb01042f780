"""Train a diffusion model by SRRL.

    accelerate launch scripts/train.py --config config/stage_process.py:sd14
    accelerate launch scripts/train.py --config config/stage_process.py:tiny --config.seed=7

`bash train.sh` does this with the right preset. The same command resumes a run that was stopped.
Every knob is explained in config/stage_process.py.
"""

import sys
from pathlib import Path

from srrl.config import check_files, load_config
from srrl.errors import one_line_errors


def main(argv: list[str]) -> None:
    config = load_config(argv)
    check_files(config)

    import torch
    from accelerate import Accelerator

    from rewards import load_rewards
    from srrl.budget import totals_table
    from srrl.checkpoint import check_same_run
    from srrl.config import resolve
    from srrl.policy import LoraSettings, Policy
    from srrl.tracking import Tracker
    from srrl.trainer import Trainer

    folder = Path(config.output_dir) / config.run_name
    check_same_run(folder, config)
    rewards = load_rewards(config.reward.models)
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    accelerator = Accelerator(
        log_with=None if config.tracker == "none" else config.tracker, project_dir=folder
    )
    policy = Policy.load(
        resolve(config.pretrained.model),
        num_steps=config.sample.num_steps,
        eta=config.sample.eta,
        micro_batch=config.sample.micro_batch,
        revision=config.pretrained.revision,
        variant=config.pretrained.variant,
        device=accelerator.device,
        dtype=dtype[config.mixed_precision],
    )
    lora = LoraSettings(config.lora.rank, config.lora.alpha, tuple(config.lora.target_modules))
    policy.add_lora(lora, config.seed)
    tracker = Tracker(folder, accelerator)
    tracker.say(f"{folder}: {config.pretrained.model} on {accelerator.device}")
    tracker.say(totals_table(config))
    Trainer(config, policy, rewards, accelerator, tracker).run()
    accelerator.end_training()


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
