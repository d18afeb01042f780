"""Which device a tensor lives on, checked without a second device.

On the meta device an operation on tensors of two devices is refused as on a GPU; so a policy there
finds every tensor that is made on the CPU and not moved.
"""

import pytest
import torch

from srrl.batch import Batch, pairs_objective
from srrl.config import load_config
from srrl.ddim import make_schedule
from srrl.models.architectures import blank_pipeline
from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.rollout import rollout
from srrl.rounds import rollout_settings
from tests.conftest import BOTH, MODELS, PRESET


@pytest.fixture(params=BOTH)
def meta(request) -> Policy:
    pipe = blank_pipeline(str(MODELS[request.param]))
    policy = Policy(
        pipe, make_schedule(pipe.scheduler.config, 4, 1.0), micro_batch=5, device="meta"
    )
    make_trainable(pipe.unet, load_config([PRESET]))
    policy.decode = lambda x: policy.pixels(x).to(torch.uint8)  # whose values nobody can look at
    return policy


def conditioning(policy: Policy, n: int) -> Conditioning:
    width = policy.pipe.unet.config.cross_attention_dim
    pooled = 64 if policy.is_xl else 0
    shapes = ((16, width), (16, width), (pooled,), (pooled,))
    return Conditioning(*(torch.empty(n, *shape, device="meta") for shape in shapes))


@pytest.mark.slow
@pytest.mark.parametrize("train_rounds", ["last", "all"])
def test_a_rollout_and_its_update_stay_on_the_policys_device(meta, train_rounds):
    c = load_config(
        [
            PRESET,
            "--config.reflect.when=always",
            f"--config.reflect.train_rounds={train_rounds}",
            "--config.sample.num_steps=4",
            "--config.interval.left=2",
            "--config.interval.right=2",
            "--config.interval.skip_last=1",
            "--config.branch.count=2",
        ]
    )
    samples = rollout(
        meta,
        conditioning(meta, 3),
        rollout_settings(c),
        rounds=2,
        trained_steps=2,
        seed=0,
        stage=0,
        prompts=[0, 1, 2],
        keep_reflected=True,
    )
    n = 12 if train_rounds == "all" else 6
    assert {t.device.type for t in (samples.prompt, samples.branch, samples.round)} == {"cpu"}
    assert {t.device.type for t in (samples.latents, samples.log_probs, samples.images)} == {"meta"}
    assert samples.latents.shape == (n, 3, 4, 8, 8) and samples.images.shape == (n, 3, 32, 32)
    batch = Batch(
        samples.latents, samples.log_probs, torch.ones(n, device="meta"), conditioning(meta, n)
    )
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(2)).to(meta.device)
    pairs_objective(rollout_settings(c), c.train.clip_range, meta, batch, pairs).loss.backward()
    assert {p.grad.device.type for p in meta.trainable()} == {"meta"}


def test_a_tensor_that_was_not_moved_would_be_found(meta):
    x = torch.empty(2, *meta.latent_shape, device="meta")
    with pytest.raises(RuntimeError, match="device"):
        meta.predict(x, torch.zeros(2, dtype=torch.long), conditioning(meta, 2), 5.0) + torch.ones(
            2, 4, 8, 8
        )
