"""The bill against real runs: evaluations, operations, memory."""

import json
from collections import Counter

import pytest
from ml_collections import ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from scripts import train
from srrl.config import load_config
from srrl.curriculum import StagePlan, plan_for
from srrl.measure.bill import CONTEXT, GIB, SLACK, Bill, Call, Phase
from srrl.measure.biller import Biller
from srrl.measure.cards import CARDS, Card, card_of
from srrl.measure.fitting import switches
from srrl.measure.show import advice
from tests.conftest import small_run
from tests.srrl.test_trainer import make_trainer

PRESETS = ["tiny", "tiny+ddpo", "tiny+b2diffurl", "tiny_xl", "tiny_xl+srrl_paper"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_evaluations_equal_the_runs_counter(preset, tmp_path):
    """A run of two stages by the real command, for the presets over one of the models."""
    command = [f"--config=config/stage_process.py:{preset}", *small_run(tmp_path)]
    if "ddpo" in preset:
        command = [x for x in command if "branch.count" not in x]
    train.main(command)
    config = load_config(command)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    stages = Biller(config, cuda=False).bill().stages
    total = 0
    for line, phases in zip(lines, stages, strict=True):
        plan = plan_for(config, line["stage"] - 1)
        update = 2 * config.train.num_inner_epochs * plan.trained_steps * line["selected"]
        total += phases["reflect"].nfe + phases["sample"].nfe + update
        assert line["nfe_total"] == total


@pytest.mark.slow
@pytest.mark.parametrize(("model", "rounds"), [("sd", "all"), ("sdxl", "last")])
def test_operations_equal_a_count_over_a_real_stage(model, rounds, tmp_path):
    """By torch's own counter, on real tensors, odd numbers of rows included."""
    trainer = make_trainer(
        tmp_path,
        f"--config.reflect.train_rounds={rounds}",
        "--config.reflect.rounds=2",
        "--config.sample.micro_batch=5",
        "--config.train.micro_batch=4",
        "--config.stages.total=1",
        "--config.sample.decode_batch=4",
        "--config.branch.count=4",
        model=model,
        micro_batch=5,
        decode_batch=4,
    )
    c, plan = trainer.config, StagePlan(0, 2, 3)
    prompts = trainer.draw_prompts(plan)
    with FlopCounterMode(display=False) as encoding:
        trainer.policy.encoder.remember(prompts)
    with FlopCounterMode(display=False) as sampling:
        samples = trainer.sample(plan, prompts)
    scored = trainer.score(plan, samples, prompts)
    batch = trainer.batch(samples, scored, trainer.select(plan, scored, prompts), prompts)
    with FlopCounterMode(display=False) as updating:
        trainer.update(plan, batch)
    c.pretrained.model = f"srrl/shapes/tiny_{model}"
    biller = Biller(c, cuda=False)
    stage = biller.stage(0)
    assert biller.encoded.flops * len(set(prompts)) == encoding.get_total_flops()
    assert sampling.get_total_flops() == sum(
        sum(stage[phase].flops.values()) for phase in ("reflect", "sample", "decode", "score")
    )
    pairs = len(batch) * plan.trained_steps * c.train.num_inner_epochs
    assert updating.get_total_flops() == biller.update(False).flops // c.train.micro_batch * pairs


@pytest.fixture(scope="module")
def tiny() -> Biller:
    """The embedded model as on a GPU in bf16, with two networks as rewards."""
    config = load_config(
        [
            "--config=config/stage_process.py:tiny",
            "--config.mixed_precision=bf16",
            '--config.reward.models={"imagereward": 1, "my:Own": 1}',
            '--config.reward.options={"imagereward": {"model": "random"}}',
        ]
    )
    return Biller(config, cuda=True)


@pytest.mark.slow
def test_memory_grows_in_proportion_to_what_goes_through_at_once(tiny):
    imagined = tiny.imagined
    for call in (
        lambda n: imagined.update(n, False),
        lambda n: imagined.update(n, True),
        lambda n: imagined.predict(n, 5.0),
        imagined.decode,
    ):
        assert call(8).peak == pytest.approx(4 * call(2).peak, rel=0.1)
        assert call(8).flops == 4 * call(2).flops
    assert imagined.update(8, True).peak < 0.6 * imagined.update(8, False).peak


@pytest.mark.slow
def test_fused_attention_never_holds_its_matrix():
    biller = Biller(
        load_config(
            ["--config=config/stage_process.py:sd14", '--config.reward.models={"shapes": 1}']
        )
    )
    attention = 16 * 8 * 4096 * 4096 * 2  # bytes of one matrix for 8 samples under guidance
    assert biller.imagined.predict(8, 5.0).peak < attention / 2
    assert biller.flops_a_row == pytest.approx(0.8044e12, rel=1e-3)  # of a known prototype


@pytest.mark.slow
def test_a_bill_says_what_it_cannot_count_and_what_stays(tiny):
    bill = tiny.bill()
    assert bill.uncounted == ["my:Own"]
    assert bill.resident["reward imagereward"] == pytest.approx(446e6 * 2, rel=0.02)
    assert bill.resident["optimizer state"] == 2 * bill.resident["trained weights"]
    assert set(bill.phases["decode"].flops) == {"half"}
    assert bill.hours(CARDS["h100"], 0.35, 8) == pytest.approx(bill.hours(CARDS["h100"], 0.35) / 8)


def card_with(limit: float) -> Card:
    """A card on which tensors can take so many bytes."""
    return Card("a card", (limit * (1 + SLACK) + CONTEXT) / GIB, 100, 10)


@pytest.mark.slow
def test_what_does_not_fit_is_made_to_fit_or_said(tiny):
    peak, fixed = tiny.bill().peak[1], max(usage.fixed for usage in tiny.usages())
    assert switches(tiny, card_with(peak + 1)) == {}
    assert switches(tiny, card_with(fixed - 1)) is None
    assert "reward.backend=worker" in advice(tiny, card_with(fixed - 1))

    def check(limit: float) -> dict:
        needed = switches(tiny, card_with(limit))
        config = tiny.config.copy_and_resolve_references()
        for key, value in needed.items():
            section, leaf = key.split(".")
            with config.unlocked():
                config[section][leaf] = ConfigDict(value) if isinstance(value, dict) else value
        assert Biller(config, cuda=True).bill().peak[1] <= limit * 1.001
        return needed

    update = next(u for u in tiny.usages() if u.key == "train.micro_batch")
    smaller = check(update.fixed + 5.5 * update.each)
    assert smaller["train.micro_batch"] == 5 and "train.gradient_checkpointing" not in smaller
    assert check(update.fixed + 0.9 * update.each)["train.gradient_checkpointing"]


def test_cards_are_known_by_the_drivers_names():
    for name, key in (
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A6000", "a6000"),
    ):
        assert card_of(name, 7.0).half == CARDS[key].half
        assert card_of(name, 7.0).gib == 7.0
    assert card_of("AMD Instinct MI300X", 190) is None


def test_a_call_takes_the_longer_one_of_launching_and_computing():
    """Exact: 8,000 operators at 5.5 us are 44 ms, whatever the rows below 0.35 of the rate."""
    card = Card("a card", 24, half=100, single=10)
    assert Call("half", 10**12, 8_000).seconds(card, 0.35) == pytest.approx(0.044, rel=1e-12)
    assert Call("half", 7 * 10**12, 8_000).seconds(card, 0.35) == pytest.approx(0.2, rel=1e-12)
    assert Call("single", 7 * 10**11, 8_000).seconds(card, 0.35) == pytest.approx(0.2, rel=1e-12)
    calls = Counter({Call("half", 10**12, 8_000): 3600, Call("half", 7 * 10**12, 8_000): 1800})
    bill = Bill({"sample": Phase(calls=calls)}, [], {}, [])
    assert bill.hours(card, 0.35) == pytest.approx(0.044 + 0.1, rel=1e-12)
    assert bill.phases["sample"].flops == {"half": (3600 + 7 * 1800) * 10**12}


@pytest.mark.slow
def test_the_hours_of_small_calls_do_not_fall_with_their_rows():
    """One prompt at a time makes nearly four times the calls of four at once, of as many flops."""
    fast = Card("a card", 80, half=1e9, single=1e9)  # launches are all that takes time
    hours = []
    for prompts in (1, 4):
        biller = Biller(
            load_config(
                [
                    "--config=config/stage_process.py:tiny",
                    f"--config.sample.batch_size={prompts}",
                    f"--config.sample.num_batches_per_stage={32 // prompts}",
                    "--config.eval.every=0",
                    "--config.mixed_precision=bf16",
                ]
            )
        )
        phases = biller.bill().phases
        hours.append(Bill({"reflect": phases["reflect"]}, [], {}, []).hours(fast, 0.35))
    assert hours[0] == pytest.approx(4 * hours[1], rel=1e-9)


@pytest.mark.slow
def test_a_run_without_evaluations_has_none_in_its_plan():
    """With few branches and many judged prompts the evaluation would be the peak."""
    flags = [
        "--config=config/stage_process.py:tiny",
        "--config.sample.batch_size=1",
        "--config.branch.count=2",
        "--config.train.micro_batch=1",
    ]
    judged, alone = (
        Biller(load_config([*flags, f"--config.eval.every={n}"])).bill() for n in (8, 0)
    )
    assert judged.peak[0] == "evaluate" and judged.phases["evaluate"].nfe > 0
    assert alone.peak[0] != "evaluate" and alone.peak[1] < judged.peak[1]
    assert alone.phases["evaluate"] == Phase()
