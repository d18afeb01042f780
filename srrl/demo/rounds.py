"""SRRL on the page: the rounds of one sample, as scripts/sample.py draws them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from rewards import check_prompts
from rewards.scoring import rewards_of
from srrl.assess.samplers import num_steps
from srrl.demo.answers import Answer, Card, png
from srrl.demo.fields import Field, common
from srrl.drawing import draw, drawn_from
from srrl.models.lora_uses import load_trained
from srrl.models.policy import Policy
from srrl.prompts import load_prompts
from srrl.rounds import rollout_settings


class Rounds:
    """A Painter of SRRL: a config's model, with the weights of a checkpoint's folder or a LoRA's
    file, if any; scored: load the config's rewards."""

    about = (
        "A sample is K rounds long: denoised to a picture, walked back to noise under weak "
        "guidance from the prompt, and denoised again. The last round is the sample, the others "
        "lead to it."
    )

    def __init__(self, config: ConfigDict, weights: Path | None, most_rounds: int, scored: bool):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rewards = rewards_of(config, device) if scored else {}
        self.settings = rollout_settings(config, branches=1)
        self.policy = Policy.from_config(config, device=device)
        lora = load_trained(self.policy.pipe, config, weights)
        self.name = str(weights or config.pretrained.model)
        self.facts = {"Model": config.pretrained.model, "Checkpoint": str(weights or "none")}
        self.facts |= {"LoRA": str(lora)} if lora else {}
        self.facts["Rewards"] = ", ".join(self.rewards) or "none"
        heldout, s, reflect = config.prompts.heldout, config.sample, config.reflect
        self.examples = [] if heldout == "none" else load_prompts(heldout)
        self.fields = [
            *common(reflect.rounds or reflect.max_rounds, most_rounds, "Rounds K"),
            Field("guidance_scale", "Guidance scale", float(s.guidance_scale), high=100),
            Field("eta", "Eta", float(s.eta), high=1, advanced=True),
            Field("steps", "Steps", s.num_steps, low=1, high=999, advanced=True),
            Field("negative_prompt", "Negative prompt", "", advanced=True),
        ]

    def draw(self, values: dict[str, Any]) -> Answer:
        prompt, seed, rounds = (values[name] for name in ("prompt", "seed", "rounds"))
        check_prompts(self.rewards, [prompt], "Prompt")
        given = {name: values[name] for name in ("guidance_scale", "eta")}
        settings, encoder = replace(self.settings, **given), self.policy.encoder
        encoder.negative_prompt = values["negative_prompt"]
        encoder.forget([prompt])  # it was encoded beside another negative prompt
        with num_steps(self.policy, values["steps"], settings.eta):
            drawn = draw(self.policy, settings, self.rewards, [prompt], [seed], rounds)
            text = drawn_from(self.policy, settings, prompt, seed, rounds, self.name)
        encoder.forget([prompt])
        cards = [
            Card(
                f"Round {k}",
                png(images[0], {**text, "round": k, "scores": scores}),
                f"seed_{seed}_round_{k}.png",
                scores,
            )
            for k, (images, scores) in enumerate(
                zip(drawn.images, drawn.scores_of(0), strict=True), 1
            )
        ]
        said = f"seed {seed}, guidance {settings.guidance_scale:g}, eta {settings.eta:g}"
        notes = [f"{said}, {values['steps']} steps", encoder.cut([prompt]).strip()]
        return Answer(prompt, cards, [note for note in notes if note])
