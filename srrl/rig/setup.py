"""The parts of RL-RIG as a config names them: diffuser, editors, checker, actor."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from ml_collections import ConfigDict

from srrl.config import resolve
from srrl.errors import UserError
from srrl.models.instruct import InstructPolicy
from srrl.models.loading import set_arithmetic
from srrl.models.locate import locate
from srrl.models.lora import read_lora
from srrl.models.lora_uses import draw_with
from srrl.models.parts import quiet
from srrl.models.policy import DTYPES, Policy
from srrl.models.start import start_from
from srrl.models.vlm import VLM
from srrl.models.weights import add_lora
from srrl.prompts import check_model
from srrl.rig.actor import TINY_ACTOR, Actor
from srrl.rig.editors import Editor
from srrl.rig.loop import Meter
from srrl.rig.seeing import EMBEDDED, TINY_VLM, Seer
from srrl.rig.wishes import Wish
from srrl.rounds import RolloutSettings
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from srrl.shapes.scenes import parse


@dataclass(frozen=True)
class Parts:
    """What a config names, loaded when it is first needed.

    device: of all of it. trained: "actor", "editor" or both, which have a LoRA to train; it begins
    with the effect of the one that the config names, if any.
    """

    config: ConfigDict
    device: torch.device | str
    trained: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        on_cpu = torch.device(self.device).type == "cpu"
        return torch.float32 if on_cpu else DTYPES[self.config.mixed_precision]

    @cached_property
    def settings(self) -> RolloutSettings:
        s = self.config.sample
        return RolloutSettings(1, s.guidance_scale, s.eta, 1.0, 1.0, 0.0, "last", 0)

    @cached_property
    def diffuser(self) -> Policy:
        set_arithmetic(self.config.allow_tf32, self.config.deterministic, self.device)
        return self._diffuser(self.config.sample)

    def cut(self, wishes: Iterable[Wish]) -> str:
        """A line about prompts whose end the Diffuser does not read, "" for none."""
        return self.diffuser.encoder.cut([wish.prompt for wish in wishes])

    def _diffuser(self, steps: ConfigDict) -> Policy:
        """The Diffuser's model, to take these steps."""
        p = self.config.pretrained
        return Policy.load(
            resolve(p.model),
            **self._sampling(steps),
            revision=p.revision,
            variant=p.variant,
            vae=p.vae and resolve(p.vae),
            single_file_config=p.single_file_config and resolve(p.single_file_config),
        )

    def _sampling(self, steps: ConfigDict) -> dict:
        s = self.config.sample
        return {
            "num_steps": steps.num_steps,
            "eta": steps.eta,
            "micro_batch": s.micro_batch,
            "decode_batch": s.decode_batch,
            "resolution": s.resolution,
            "device": self.device,
            "dtype": self.dtype,
        }

    @cached_property
    def editor(self) -> Editor:
        """The editor that the config names."""
        return self.instruct if self.config.editor.kind == "instruct" else self.inversion

    @cached_property
    def instruct(self) -> Editor:
        e = self.config.editor
        given = {**self._sampling(e), "image_guidance": e.image_guidance}
        policy = InstructPolicy.load(resolve(e.model), **given)
        if policy.image_size != self.diffuser.image_size:
            raise UserError(
                f"editor.model={e.model!r} edits pictures of {policy.image_size}, the diffuser's "
                f"are of {self.diffuser.image_size}: set sample.resolution"
            )
        return Editor(self._with_lora(policy), self._editing(e))

    @cached_property
    def inversion(self) -> Editor:
        """By inversion, with the Diffuser's model: as the config's editor, or beside another one in
        the steps in which it draws."""
        own = self.config.editor.kind == "inversion"
        steps = self.config.editor if own else self.config.sample
        policy = self._diffuser(steps)
        return Editor(self._with_lora(policy) if own else policy, self._editing(steps))

    def _with_lora(self, policy: Policy) -> Policy:
        """The editor's policy with its LoRA."""
        c, given = self.config, self.config.editor.lora
        named = f"config.editor.lora={given!r}"
        if "editor" in self.trained:
            add_lora(policy.network, c.lora, c.seed)
            if c.train.gradient_checkpointing:
                policy.network.enable_gradient_checkpointing()
            if given:
                start_from(policy.pipe, given, "config.editor.lora")
        elif given:
            draw_with(policy.pipe, read_lora(policy.pipe, locate(given, named).file, named))
        return policy

    def _editing(self, steps: ConfigDict) -> RolloutSettings:
        weak, depth = self.config.editor.inversion_guidance, self.config.editor.depth
        scale = steps.guidance_scale
        return RolloutSettings(1, scale, steps.eta, 1.0, weak, 0.0, "last", 0, depth)

    @cached_property
    def seer(self) -> Seer:
        k = self.config.checker
        return Seer(self._vlm("checker"), k.model == EMBEDDED, form=k.form, threshold=k.threshold)

    @cached_property
    def _vlms(self) -> dict[str, VLM]:
        """Those that checker and actor have, of which each counts for itself."""
        return {}

    def _vlm(self, part: str) -> VLM:
        """The VLM of "checker" or "actor"; of one model both have one network. The embedded ones
        are two: what made the actor write cost the checker's relations (docs/LOG.md)."""
        c = self.config[part]
        if part not in self._vlms:
            given = {"batch_size": c.batch_size, "side": c.side}
            others = [] if c.model == EMBEDDED else self._vlms.items()
            same = [v for name, v in others if self.config[name].model == c.model]
            embedded = {"checker": TINY_VLM, "actor": TINY_ACTOR}[part]
            model = embedded if c.model == EMBEDDED else resolve(c.model)
            with quiet():
                self._vlms[part] = vlm = (
                    same[0].sharing(**given)
                    if same
                    else VLM.load(model, dtype=self.dtype, device=self.device, **given)
                )
            vlm.adapted = part == "actor"
            if part == "actor":
                self._give_lora(vlm)
        return self._vlms[part]

    def _give_lora(self, vlm: VLM) -> None:
        """The actor's LoRA, which the checker, of the same network, goes without."""
        c, given = self.config, self.config.actor.lora
        if given:
            vlm.put_lora(locate(given, f"config.actor.lora={given!r}").file.parent)
        if "actor" in self.trained:
            if given:
                rank = vlm.network.peft_config["default"].r
                if rank != c.lora.rank:
                    raise UserError(f"config.actor.lora={given!r} is of rank {rank}: set lora.rank")
                vlm.train_lora()
            else:
                vlm.add_lora(c.lora.rank, c.lora.alpha, c.seed)
            if c.train.gradient_checkpointing:
                vlm.network.activation_checkpointing_enable({"use_reentrant": False})
                vlm.network.disable_input_require_grads()

    def actor_for(self, editor: Editor) -> Actor:
        a = self.config.actor
        embedded = a.model == EMBEDDED
        return Actor(self._vlm("actor"), editor.kind, embedded, a.temperature, a.max_tokens)

    @property
    def meter(self) -> Meter:
        """Of all that is loaded."""
        loaded = self.__dict__
        policies = [loaded["diffuser"]] if "diffuser" in loaded else []
        policies += [loaded[name].policy for name in ("instruct", "inversion") if name in loaded]
        return Meter(tuple(policies), tuple(loaded.get("_vlms", {}).values()))

    @property
    def exact(self) -> bool:
        """Is it the shapes world, where the truth can be read off a picture?"""
        return Path(resolve(self.config.pretrained.model)).resolve() in (TINY_SD, TINY_SDXL)

    def check(self, wishes: Sequence[Wish], ways: Sequence[str], where: str) -> None:
        """Raise UserError for a model that cannot be there, and for a prompt from `where` that the
        embedded parts do not know."""
        c = self.config
        named = {"pretrained.model": c.pretrained.model}
        if c.editor.kind == "instruct":
            named["editor.model"] = c.editor.model
        named |= {f"{x}.model": c[x].model for x in ("checker", "actor") if c[x].model != EMBEDDED}
        for key, model in named.items():
            check_model(f"config.{key}", resolve(model))
        if self.exact or EMBEDDED in (c.checker.model, c.actor.model) or "expert" in ways:
            for wish in wishes:
                try:
                    parse(wish.prompt)
                except ValueError as error:
                    raise UserError(f"{where}: {error}") from None
