"""The loop: ratio, gradient, guards, resume. Small real runs of the real parts."""

import json
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from rewards import load_rewards, score_all
from srrl.budget import evaluation_cost
from srrl.config import load_config
from srrl.curriculum import StagePlan
from srrl.ddim import denoise_mean, log_prob
from srrl.errors import UserError
from srrl.records import Scored, tied
from srrl.rollout import Rollout, rollout
from srrl.rounds import rollout_settings
from srrl.run.best import best
from srrl.run.folder import read_lines
from srrl.run.pictures import Images
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer, check_processes
from tests.conftest import PRESET, PROMPTS, load_policy, randomise_lora, small_run

SHORT = "--config.reflect.max_rounds=2"


def make_trainer(tmp_path, *overrides, rewards=None, model="sd", **options) -> Trainer:
    seldom = ("--config.eval.every=5", "--config.pictures.every=5")  # beginning and end alone
    config = load_config([PRESET, *small_run(tmp_path), *seldom, *overrides])
    accelerator = Accelerator()
    policy = load_policy(model, lora=True, num_steps=config.sample.num_steps, **options)
    tracker = Tracker(tmp_path / "run", accelerator)
    rewards = rewards or load_rewards(config.reward.models)
    return Trainer(config, policy, rewards, accelerator, tracker)


def batch_of(trainer, plan):
    prompts = trainer.draw_prompts(plan)
    samples = trainer.sample(plan, prompts)
    scored = trainer.score(plan, samples, prompts)
    return trainer.batch(samples, scored, trainer.select(plan, scored, prompts), prompts)


def test_prompts_that_are_cut_are_said_at_the_start(tmp_path, capsys):
    (tmp_path / "long.json").write_text(json.dumps([*PROMPTS, "a red circle and " * 40]))
    flags = [f"--config.prompts.train={tmp_path / 'long.json'}", "--config.stages.total=3"]
    bright = SimpleNamespace(score=lambda images, prompts: images.float().mean((1, 2, 3)))
    make_trainer(tmp_path, *flags, rewards={"bright": bright}).prepare(0)
    assert capsys.readouterr().out.count("1 of 8 prompts are longer than the 16 tokens") == 1


def test_the_first_ratio_is_one(tmp_path):
    trainer = make_trainer(
        tmp_path, "--config.train.micro_batch=7", "--config.sample.micro_batch=5"
    )
    randomise_lora(trainer.policy)
    plan = StagePlan(0, 2, 4)
    metrics = trainer.update(plan, batch_of(trainer, plan))
    assert metrics["ratio/first_max_dev"] <= 1e-5
    assert metrics["ratio/max_dev"] > metrics["ratio/first_max_dev"]  # later updates have moved


def test_a_ratio_that_is_not_one_stops_the_run_before_the_weights_change(tmp_path):
    trainer = make_trainer(tmp_path)
    plan = StagePlan(0, 1, 4)
    batch = batch_of(trainer, plan)
    randomise_lora(trainer.policy)  # the policy is no longer the one that sampled
    before = [p.clone() for p in trainer.policy.trainable()]
    with pytest.raises(UserError, match="sampling and training disagree"):
        trainer.update(plan, batch)
    after = trainer.policy.trainable()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_plain_ddpo_loss_and_gradient_equal_an_independent_computation(tmp_path):
    """K = 1, G = 1, all steps: no micro-batches, no shuffling, one autograd graph."""
    config = "branch.count=1 select.mode=all sample.num_steps=10 interval.steps=10"
    flags = [f"--config.{value}" for value in (*config.split(), "interval.skip_last=0")]
    trainer = make_trainer(tmp_path, *flags)
    randomise_lora(trainer.policy)
    plan = StagePlan(0, 1, 10)
    batch = batch_of(trainer, plan)
    batch.advantages[:] = torch.tensor([1.5, -0.5, 0.25])
    seen = {}
    trainer.learner.optimizer.step = lambda: seen.setdefault(
        "gradient", [p.grad.clone() for p in trainer.policy.trainable()]
    )
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(10))
    update = trainer.learner.optimizer_step(batch, pairs[torch.randperm(30)], first=False)

    policy = trainer.policy
    terms = []
    for n in range(3):
        for i in range(10):
            step = torch.tensor([i])
            a_t, a_s, sigma = policy.schedule.coefficients(step, 1.0)
            t = policy.schedule.timesteps[step]
            x, x_next = batch.latents[n, i][None], batch.latents[n, i + 1][None]
            cond = batch.conditioning.rows(slice(n, n + 1))
            text = policy.pipe.unet(x, t, cond.text).sample
            empty = policy.pipe.unet(x, t, cond.empty).sample
            mean = denoise_mean(x, empty + 5.0 * (text - empty), a_t, a_s, sigma)
            log_p = log_prob(x_next, mean, sigma)
            terms.append(-batch.advantages[n] * torch.exp(log_p - batch.log_probs[n, i]))
    loss = torch.cat(terms).mean()
    expected = torch.autograd.grad(loss, list(policy.trainable()))
    norm = torch.cat([g.flatten() for g in expected]).norm()
    scale = min(1.0, trainer.config.train.max_grad_norm / norm.item())
    assert update.loss == pytest.approx(loss.item(), abs=1e-6)
    assert update.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    ours = torch.cat([g.flatten() for g in seen["gradient"]])
    theirs = torch.cat([g.flatten() for g in expected]) * scale
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()  # float32 sums in another order


def test_training_changes_only_the_lora(tmp_path):
    trainer = make_trainer(tmp_path)
    modules = {
        "unet": trainer.policy.pipe.unet,
        "vae": trainer.policy.pipe.vae,
        "text": trainer.policy.pipe.text_encoder,
    }
    before = {
        f"{m}.{n}": p.detach().clone()
        for m, module in modules.items()
        for n, p in module.named_parameters()
    }
    trainer.run()
    saved = sum(f.stat().st_size for f in (tmp_path / "run" / "checkpoints").rglob("*.*"))
    newest = sum(f.stat().st_size for f in (tmp_path / "run").rglob("stage_0002/*.*"))
    assert 0.7 * newest < trainer.space(2) < 1.2 * newest  # one more, while it is being written
    assert saved < trainer.space(-1) < 1.6 * saved
    changed = {
        f"{m}.{n}"
        for m, module in modules.items()
        for n, p in module.named_parameters()
        if not torch.equal(p, before[f"{m}.{n}"])
    }
    assert changed and all("lora_" in name for name in changed)


@pytest.mark.slow
def test_the_last_partial_group_of_trajectories_is_trained_too(tmp_path):
    trainer = make_trainer(tmp_path, "--config.select.mode=all")
    sizes = []
    original = trainer.learner.optimizer_step
    trainer.learner.optimizer_step = lambda s, pairs, first: (
        sizes.append(len(pairs)) or original(s, pairs, first)
    )
    plan = StagePlan(0, 1, 3)
    batch = batch_of(trainer, plan)  # 9 trajectories, at most 2 an update, 2 epochs
    trainer.update(plan, batch)
    assert sum(sizes) == 2 * 9 * 3 and len(sizes) == 2 * 5 and max(sizes) <= 2 * 3


class Bright:
    def score(self, images, prompts):
        return images.float().mean((1, 2, 3)) / 255


@pytest.mark.slow
def test_of_several_rewards_their_weighted_sum_is_logged_and_said_everywhere(tmp_path, capsys):
    models = '--config.reward.models={"shapes": 1.0, "bright": -0.5}'
    rewards = {**load_rewards(["shapes"]), "bright": Bright()}
    trainer = make_trainer(tmp_path, models, "--config.stages.total=1", rewards=rewards)
    trainer.run()
    said = capsys.readouterr().out
    assert (said.count("total on ") == 2 and "total -0." in said) or "total 0." in said
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    shapes, bright, total = (line[f"reward/{n}/mean"] for n in ("shapes", "bright", "total"))
    assert total == pytest.approx(shapes - 0.5 * bright, abs=1e-6)
    evaluations = read_lines(tmp_path / "run" / "eval.jsonl")
    for one, other, both in zip(
        evaluations[::3], evaluations[1::3], evaluations[2::3], strict=True
    ):
        assert [x["reward"] for x in (one, other, both)] == ["shapes", "bright", "total"]
        sums = [a - 0.5 * b for a, b in zip(one["scores"], other["scores"], strict=True)]
        assert both["scores"] == pytest.approx(sums, abs=2e-6)
    assert best(tmp_path / "run").score in [pytest.approx(e["mean"]) for e in evaluations[2::3]]
    assert set(read_lines(tmp_path / "run" / "samples.jsonl")[0]["scores"]) == {"shapes", "bright"}


class Constant:
    def score(self, images, prompts):
        return torch.ones(len(prompts))


class NotANumber:
    def score(self, images, prompts):
        return torch.full((len(prompts),), float("nan"))


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([1, 1, 2, 2, 3, 3, 4, 4], 1.0),
        ([1, 1, 2, 2, 3, 9, 4, 4], 0.75),
        ([1, 1, 1, 1, 1, 1, 1, 2], 0.75),
        ([1, 2, 1, 2, 1, 2, 1, 2], 0.0),
    ],
)
def test_tied_is_the_share_of_groups_with_one_score(scores, share):
    """Two prompts, two rounds, two branches; and images that were not judged are in no group."""
    prompt, rounds = torch.arange(8) // 4, torch.arange(8) // 2 % 2 + 1
    judged, local = torch.ones(8, dtype=torch.bool), torch.arange(8)
    values = torch.tensor(scores).float()
    assert tied(Scored(prompt, rounds, {}, judged, local), values) == share
    last = Scored(prompt, rounds, {}, rounds == 2, local)
    assert tied(last, values) == (values[2] == values[3]).float().add(values[6] == values[7]) / 2
    alone = Scored(torch.arange(8), rounds, {}, judged, local)
    assert tied(alone, values) == 0


@pytest.mark.slow
def test_an_empty_selection_trains_nothing_and_goes_on(tmp_path, capsys):
    trainer = make_trainer(tmp_path, rewards={"shapes": Constant()})
    before = [p.clone() for p in trainer.policy.trainable()]
    trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.trainable(), strict=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["selected"] for line in lines] == [0, 0]
    assert [json.loads(line)["reward/shapes/tied"] for line in lines] == [1, 1]
    said = capsys.readouterr().out
    assert said.count("warning: 'shapes' scored all images of each prompt alike") == 2
    assert said.count("nothing was selected") == 2


@pytest.mark.slow
def test_a_stage_whose_images_have_nothing_to_be_compared_with_says_that_it_taught_nothing(
    tmp_path, capsys
):
    alone = [f"--config.{value}" for value in ("branch.count=1", "select.mode=all")]
    make_trainer(tmp_path, *alone, "--config.stages.total=1").run()
    said = capsys.readouterr().out
    assert "selected 3/3" in said and "gradient 0 " in said
    assert said.count("warning: no prompt had another score to be compared with") == 1


def test_non_finite_scores_stop_before_any_update(tmp_path):
    trainer = make_trainer(tmp_path, rewards={"shapes": NotANumber()})
    with pytest.raises(UserError, match="'shapes' returned nan"):
        trainer.run()


def test_a_non_finite_loss_never_reaches_the_weights(tmp_path):
    trainer = make_trainer(tmp_path)
    plan = StagePlan(0, 1, 3)
    batch = batch_of(trainer, plan)
    batch.advantages[0] = float("nan")
    before = [p.clone() for p in trainer.policy.trainable()]
    pairs = torch.cartesian_prod(torch.arange(len(batch)), torch.arange(3))
    with pytest.raises(UserError, match="not finite"):
        trainer.learner.optimizer_step(batch, pairs, first=False)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.trainable(), strict=True))
    trainer.config.train.max_bad_steps = 1
    assert trainer.learner.optimizer_step(batch, pairs, first=False) is None
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.trainable(), strict=True))
    with pytest.raises(UserError, match="after 1 that were left out"):
        trainer.learner.optimizer_step(batch, pairs, first=False)


@pytest.mark.slow
def test_updates_that_are_left_out_are_counted_and_the_count_is_resumed(tmp_path):
    trainer = make_trainer(tmp_path, "--config.train.max_bad_steps=5")
    plan = StagePlan(0, 1, 3)
    batch = batch_of(trainer, plan)
    batch.advantages[0] = float("nan")
    metrics = trainer.update(plan, batch)
    assert 0 < metrics["skipped"] <= 5 and metrics["updates"] > 0
    assert metrics["skipped"] + metrics["updates"] == 2 * -(-len(batch) // 2)
    again = make_trainer(tmp_path, "--config.train.max_bad_steps=5")
    again.learner.load_state_dict(trainer.learner.state_dict())
    assert again.learner.skipped == metrics["skipped"]


def test_weights_that_an_update_has_broken_are_neither_trained_on_nor_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    plan = StagePlan(0, 1, 3)
    batch = batch_of(trainer, plan)
    trainer.resume()
    step = trainer.learner.optimizer.step

    def overflow() -> None:
        step()
        next(iter(trainer.policy.trainable())).data[0, 0] = float("inf")

    trainer.learner.optimizer.step = overflow
    with pytest.raises(UserError, match="memory holds them now: they are not saved"):
        trainer.update(plan, batch)
    with pytest.raises(UserError, match="more weights are not finite: not saved"):
        trainer.save()
    assert [f.name for f in (tmp_path / "run" / "checkpoints").iterdir()] == ["stage_0000"]


@pytest.mark.slow
@pytest.mark.parametrize("presets", ["tiny+b2diffurl", "tiny+ddpo", "tiny+srrl_paper"])
def test_every_variant_runs_by_config_alone_and_costs_what_the_formula_says(tmp_path, presets):
    overrides = [a for a in small_run(tmp_path) if not a.startswith("--config.branch")]
    if presets == "tiny+ddpo":
        overrides = [a for a in overrides if "interval" not in a and "num_steps" not in a]
    config = load_config([f"--config=config/stage_process.py:{presets}", *overrides])
    trainer = make_trainer(tmp_path)
    policy = load_policy(lora=True, num_steps=config.sample.num_steps)
    trainer = Trainer(config, policy, trainer.rewards, trainer.accelerator, trainer.tracker)
    from srrl.budget import plan_for, stage_cost, trained_passes

    trainer.run()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = images = 0
    for line in lines:
        cost = stage_cost(config, plan_for(config, line["stage"] - 1))
        expected += (
            cost.reflect
            + cost.sample
            + cost.update_per_pass * trained_passes(config, line["selected"])
        )
        images += cost.images
    assert lines[-1]["nfe_total"] == expected and lines[-1]["samples_total"] == images
    assert lines[-1]["rounds"] == (2 if presets == "tiny+srrl_paper" else 1)


@pytest.mark.slow
def test_resume_after_each_stage_gives_the_same_run(tmp_path):
    whole = make_trainer(tmp_path / "a", "--config.stages.total=3", SHORT)
    whole.run()
    stopped = make_trainer(tmp_path / "b", "--config.stages.total=3", SHORT)

    def interrupt(*args):
        raise KeyboardInterrupt

    stopped.learner.update = interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    for stage in (1, 2):
        again = make_trainer(tmp_path / "b", "--config.stages.total=3", SHORT)
        finish = again.finish
        again.finish = lambda done, metrics, finish=finish, last=stage: (
            finish(done, metrics) if done < last else interrupt()
        )
        with pytest.raises(KeyboardInterrupt):
            again.run()
    resumed = make_trainer(tmp_path / "b", "--config.stages.total=3", SHORT)
    resumed.run()
    for one, other in zip(whole.policy.trainable(), resumed.policy.trainable(), strict=True):
        assert torch.equal(one, other)
    assert whole.history == resumed.history
    for name in ("metrics.jsonl", "eval.jsonl"):
        texts = [strip_times(tmp_path / side / "run" / name) for side in "ab"]
        assert texts[0] == texts[1]


def strip_times(path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds/")} for line in lines]


def evaluated(folder) -> list[tuple]:
    file = folder / "run" / "eval.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(x["stage"], x["split"], x["scores"]) for x in map(json.loads, lines)]


@pytest.mark.slow
def test_a_run_starts_where_another_ended_and_resumes_without_it(tmp_path):
    source = make_trainer(tmp_path / "a", "--config.train.learning_rate=3e-2")
    source.run()
    start = f"--config.pretrained.lora={tmp_path / 'a' / 'run'}"
    warm = make_trainer(tmp_path / "b", start)
    warm.run()
    ends = [(split, scores) for stage, split, scores in evaluated(tmp_path / "a") if stage == 2]
    starts = [(split, scores) for stage, split, scores in evaluated(tmp_path / "b") if stage == 0]
    assert starts == ends
    fresh = [(split, scores) for stage, split, scores in evaluated(tmp_path / "a") if stage == 0]
    assert starts != fresh
    shutil.rmtree(tmp_path / "a")
    again = make_trainer(tmp_path / "b", start)
    again.run()
    for one, other in zip(warm.policy.trainable(), again.policy.trainable(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_evaluation_of_either_kind_can_be_turned_off(tmp_path):
    one = ["--config.prompts.heldout=x", "--config.stages.total=1"]
    make_trainer(tmp_path / "a", "--config.eval.heldout=false", *one).run()
    assert [x[:2] for x in evaluated(tmp_path / "a")] == [(0, "train"), (1, "train")]
    make_trainer(tmp_path / "b", "--config.eval.every=0", *one).run()
    assert evaluated(tmp_path / "b") == []
    assert (tmp_path / "b" / "run" / "curves.png").exists()


@pytest.mark.slow
def test_every_k_of_the_evaluation_is_judged_as_if_alone(tmp_path):
    def judged(name, rounds):
        trainer = make_trainer(tmp_path / name, f"--config.eval.rounds={rounds}")
        trainer.resume()  # of the start
        file = tmp_path / name / "run" / "eval.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        cost = evaluation_cost(trainer.config, 64)
        return cost, {(x["stage"], x["split"], x["rounds"]): x["scores"] for x in lines}

    both_cost, both = judged("a", "[1, 2]")
    alone = [judged("b", "1"), judged("c", "[2]")]
    assert both == alone[0][1] | alone[1][1]
    assert len(both) == 4 and both[0, "train", 1] != both[0, "train", 2]
    assert both_cost == sum(cost for cost, _ in alone)


def test_advantages_are_weighted_by_sign_after_they_are_clamped(tmp_path):
    flags = ["--config.select.mode=all", "--config.train.adv_clip_max=0.5"]
    plan, plain = StagePlan(0, 1, 3), make_trainer(tmp_path / "a", *flags)
    weighted = make_trainer(
        tmp_path / "b",
        *flags,
        "--config.train.positive_weight=2",
        "--config.train.negative_weight=0",
    )
    ours, theirs = (batch_of(t, plan).advantages for t in (weighted, plain))
    assert theirs.max() == 0.5 and theirs.min() == -0.5
    assert torch.equal(ours, torch.where(theirs > 0, 2 * theirs, 0 * theirs))


@pytest.mark.slow
def test_one_rollout_is_alive_at_a_time_and_none_while_the_policy_is_updated(tmp_path):
    trainer = make_trainer(tmp_path, "--config.stages.total=2", "--config.pictures.every=1")
    seen, alive = [], {"sample": [], "update": [], "evaluate": []}
    sample, evaluate_split = trainer.sample, trainer.evaluate_split
    update = trainer.learner.update

    def living() -> int:
        return sum(reference() is not None for reference in seen)

    def noted(phase, function):
        def call(*given):
            alive[phase].append(living())
            return function(*given)

        return call

    def remembered(*given):
        rollout = noted("sample", sample)(*given)
        seen.append(weakref.ref(rollout.latents))
        return rollout

    trainer.sample = remembered
    trainer.evaluate_split = noted("evaluate", evaluate_split)
    trainer.learner.update = noted("update", update)
    trainer.run()
    assert len(seen) == 2 and living() == 0
    assert alive["sample"] == [0, 0] and alive["update"] == [0, 0]
    assert set(alive["evaluate"]) == {0}


@pytest.mark.slow
def test_pictures_of_reflecting_rounds_are_shown_with_their_scores(tmp_path):
    trainer = make_trainer(tmp_path, "--config.pictures.every=1")
    plan = StagePlan(0, 3, 4)
    prompts = trainer.draw_prompts(plan)
    samples = trainer.sample(plan, prompts)
    scored, images = (
        trainer.score(plan, samples, prompts),
        Images(samples.images, samples.reflected),
    )
    found = trainer.pictures(images, scored, prompts, 2)
    assert len(found.scores) == len(found.reflected) == 2
    for scores, pictures in zip(found.scores, found.reflected, strict=True):
        expected = score_all(trainer.rewards, pictures, prompts[:2])
        assert {k: v.tolist() for k, v in scores.items()} == {
            k: v.tolist() for k, v in expected.items()
        }


def test_the_parts_of_a_rollout_are_freed_as_they_are_joined(policy):
    arguments = {"rounds": 1, "trained_steps": 2, "seed": 0, "stage": 0}
    settings = rollout_settings(load_config([PRESET]))
    parts = [
        rollout(policy, policy.encode([PROMPTS[i]]), settings, prompts=[i], **arguments)
        for i in range(2)
    ]
    whole = Rollout.cat(parts)
    assert len(whole.latents) == 2 * settings.branches and whole.images.device.type == "cpu"
    assert all(not vars(part).keys() - {"reflected"} for part in parts)


@pytest.mark.parametrize(
    ("flags", "processes", "said"),
    [
        ([], 13, "13 processes for 12 prompts a stage"),
        (["--config.use_lora=true"], 2, "FSDP shards the whole UNet"),
        (["--config.use_lora=false", "--config.eval.num_prompts=3"], 2, "= 3 is not a multiple"),
        (["--config.use_lora=false", "--config.eval.num_prompts=8"], 4, "= 5 is not a multiple"),
        (["--config.use_lora=false"], 5, "batch_size = 12 is not a multiple of the 5"),
        (["--config.use_lora=false", "--config.eval.num_prompts=4"], 4, None),
        (["--config.use_lora=false", "--config.eval.every=0"], 4, None),
        (["--config.use_lora=false", "--config.reflect.when=failed"], 2, "set it to 'always'"),
    ],
)
def test_processes_that_cannot_share_the_work_are_refused(flags, processes, said, tmp_path):
    """Also where a prompt file has fewer prompts than are asked for: five here."""
    file = tmp_path / "five.json"
    file.write_text(json.dumps([f"prompt {i}" for i in range(5)]))
    given = [PRESET, "--config.reflect.when=always", "--config.sample.batch_size=12"]
    given += [f"--config.prompts.train={file}", *flags]
    accelerator = SimpleNamespace(
        num_processes=processes,
        distributed_type=DistributedType.FSDP if processes < 13 else DistributedType.MULTI_CPU,
    )
    if said is None:
        return check_processes(load_config(given), accelerator)
    with pytest.raises(UserError, match=said):
        check_processes(load_config(given), accelerator)


def test_a_phase_waits_for_its_own_stream_alone(tmp_path, monkeypatch):
    """So that scoring on another stream is neither waited for nor booked as sampling."""
    trainer, waited = make_trainer(tmp_path), []
    stream = SimpleNamespace(synchronize=lambda: waited.append("own"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waited.append("all"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    trainer.policy.device = torch.device("cuda")
    with trainer.timed("sample"):
        pass
    assert waited == ["own", "own"]


@pytest.mark.slow
def test_each_requirements_answer_is_in_the_samples(tmp_path):
    models = '{"checker": 1.0, "shapes": 1.0}'
    trainer = make_trainer(tmp_path, f"--config.reward.models={models}")
    trainer.run()
    lines = [json.loads(x) for x in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 3 * 3
    for line in lines:
        answers = line["details"]["checker"]
        assert set(line["details"]) == {"checker"} and len(answers) == 3
        passed = sum(p > 0.5 for p in answers.values()) / 3
        assert line["scores"]["checker"] == pytest.approx(passed)
        first, second, relation = answers
        assert relation.startswith(first) and relation.endswith(second)
