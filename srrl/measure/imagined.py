"""The run's own networks and code on fake tensors: what each of its calls takes.

The policy, its VAE and text encoders and the reward networks are those of the config, built without
weights; the calls are those that training makes (`Policy.predict`, `Policy.pixels`, the learner's
objective and its backward pass).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rewards import keywords, stands_for
from rewards.blank import BlankReward, blank_reward
from srrl.batch import Batch, pairs_objective
from srrl.config import resolve
from srrl.ddim import make_schedule
from srrl.errors import UserError
from srrl.measure.counting import Count, cuda_autocast, make_fake, size_of
from srrl.models.architectures import blank_like, blank_pipeline
from srrl.models.parts import faults, vae_config
from srrl.models.policy import DTYPES, Conditioning, Policy
from srrl.models.weights import make_trainable
from srrl.rounds import rollout_settings


class Imagined:
    """A config's models without numbers, on a GPU (`cuda`) or on the CPU.

    pipe: the pipeline where it is loaded already; else its name is enough.

    Each method runs one call and returns its Count: operations, and bytes above the weights.
    Raises UserError where the architecture of a model is not known.
    """

    def __init__(self, c: ConfigDict, cuda: bool, pipe: DiffusionPipeline | None = None):
        self.config, self.cuda = c, cuda
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        dtype = DTYPES[c.mixed_precision] if cuda else torch.float32
        given = pipe is not None
        pipe = blank_like(pipe) if given else blank_pipeline(resolve(c.pretrained.model))
        for part in (x for x in pipe.components.values() if isinstance(x, nn.Module)):
            nn.Module.to(part, dtype if c.use_lora or part is not pipe.unet else torch.float32)
        if c.pretrained.vae and not given:
            pipe.vae = blank_vae(resolve(c.pretrained.vae), pipe.vae)
        schedule = make_schedule(pipe.scheduler.config, c.sample.num_steps, c.sample.eta)
        self.policy = policy = Policy(
            pipe,
            schedule,
            micro_batch=c.sample.micro_batch,
            decode_batch=c.sample.decode_batch,
            resolution=c.sample.resolution,
            dtype=dtype,
            device="meta",
        )
        make_trainable(pipe.unet, c)
        self.rewards: dict[str, BlankReward] = {}
        self.uncounted: list[str] = []  # rewards of unknown architecture
        options, kind = c.reward.options.to_dict(), c.reward.dtype if cuda else "fp32"
        for name in c.reward.models:
            try:
                reward = blank_reward(stands_for(name, options), keywords(name, options), kind)
            except LookupError:
                self.uncounted.append(name)
            else:
                self.rewards |= {name: reward} if reward else {}
        with self.fake():
            for module in self.modules():
                make_fake(module)
        policy.device, policy.schedule = torch.device("cpu"), schedule
        policy.pads = not cuda
        self.text_shapes = self.encode()[1]

    def modules(self) -> Iterator[nn.Module]:
        yield from (self.policy.network, self.policy.pipe.vae, *self.policy.text_encoders)
        yield from (reward.network for reward in self.rewards.values())

    @contextmanager
    def fake(self) -> Iterator[None]:
        """Everything made inside has a shape and no numbers; on a GPU autocast is as there."""
        with self.mode, cuda_autocast() if self.cuda else nullcontext():
            yield

    @contextmanager
    def counted(self, grad: bool = False, *resident: Tensor) -> Iterator[Count]:
        weights = [t for m in self.modules() for t in (*m.parameters(), *m.buffers())]
        with self.fake(), torch.set_grad_enabled(grad):
            with Count([*weights, *resident]) as count:
                yield count
            for parameter in self.policy.trainable():
                parameter.grad = None

    # ------------------------------------------------------------------ calls

    def encode(self) -> tuple[Count, list[torch.Size]]:
        """One prompt and the empty one through the text encoders; the shapes of an embedding."""
        with self.counted() as count:
            (text, pooled), _ = self.policy.encoder._encode("a prompt")
        return count, [text.shape, pooled.shape]

    def predict(self, samples: int, guidance: float) -> Count:
        """One guided prediction for so many samples."""
        x, step, conditioning = self._inputs(samples)
        with self.counted(False, x) as count:
            self.policy.predict(x, step, conditioning, guidance)
        return count

    def decode(self, pictures: int) -> Count:
        """So many pictures decoded at once."""
        latents = self._inputs(pictures)[0]
        with self.counted() as count:
            self.policy.pixels(latents)
        return count

    def update(self, pairs: int, checkpointing: bool) -> Count:
        """Forward and backward passes of the objective on so many pairs, as one micro-batch.

        Where every weight is trained, a second pass meets the gradients of the first.
        """
        network = self.policy.network
        if checkpointing:
            network.enable_gradient_checkpointing()
        else:
            network.disable_gradient_checkpointing()
        x, _, conditioning = self._inputs(pairs)
        settings, clip_range = rollout_settings(self.config), self.config.train.clip_range
        with self.fake():
            latents = torch.stack([x, x], 1)
            ones = torch.ones(pairs)
            batch = Batch(latents, ones[:, None], ones, conditioning)
            index = torch.stack([torch.arange(pairs), torch.zeros(pairs, dtype=torch.long)], 1)
        with self.counted(True, latents, *vars(conditioning).values()) as count:
            for _ in range(1 if self.config.use_lora else 2):
                before = count.flops, count.operators
                objective = pairs_objective(settings, clip_range, self.policy, batch, index)
                torch.autograd.backward(objective.loss)
                del objective
        count.flops, count.operators = count.flops - before[0], count.operators - before[1]
        return count

    def score(self, name: str, pictures: int) -> Count:
        """So many pictures through a reward's network at once."""
        reward = self.rewards[name]
        with self.counted() as count:
            reward.run(reward.network, pictures)
        return count

    def _inputs(self, n: int) -> tuple[Tensor, Tensor, Conditioning]:
        with self.fake():
            text, pooled = (torch.zeros(n, *shape) for shape in self.text_shapes)
            x = torch.zeros(n, *self.policy.latent_shape)
            step = torch.zeros(n, dtype=torch.long)
        return x, step, Conditioning(text, text, pooled, pooled)

    # ------------------------------------------------------------------ sizes

    def sizes(self) -> dict[str, int]:
        """Bytes of the weights, by part."""

        def weights(*modules: nn.Module) -> int:
            return size_of(t for m in modules for t in m.parameters())

        policy, trained = self.policy, size_of(self.policy.trainable())
        unet = weights(policy.network)
        return {
            "UNet": unet - trained if self.config.use_lora else 0,
            "trained weights": trained,
            "VAE": weights(policy.pipe.vae),
            "text encoders": weights(*policy.text_encoders),
            **{f"reward {k}": weights(r.network) for k, r in self.rewards.items()},
        }


def blank_vae(given: str, own: AutoencoderKL) -> AutoencoderKL:
    """The VAE of a folder's or file's configuration; of a hub name that is not in the cache, the
    model's own that stays in half. Raises UserError for a local one that cannot serve."""
    try:
        config = vae_config(given)
    except UserError:
        if Path(given).exists():
            raise
        own.register_to_config(force_upcast=False)
        return own
    with faults("pretrained.vae", given), torch.device("meta"):
        return AutoencoderKL.from_config(config or own.config)
