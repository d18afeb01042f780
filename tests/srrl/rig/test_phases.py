"""Reflection-GRPO's phases: what moves, what does not, and that they go on bit for bit."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from srrl.config import flatten, load_config
from srrl.errors import UserError
from srrl.rig.actor import TINY_ACTOR
from srrl.rig.phases import ActorRun
from srrl.rig.setup import Parts
from srrl.rig.training import Phases, free_of, phase_config, start
from srrl.rig.wishes import check_files
from srrl.run.checkpoint import check_same_run
from srrl.run.tracking import Tracker

RIG = "--config=config/rig.py:tiny"
SMALL = [
    "--config.sample.batch_size=3",
    "--config.stages.total=2",
    "--config.eval.every=0",
    "--config.pictures.every=100",
    "--config.pictures.prompts=2",
    "--config.train.need_gain=false",
    "--config.phase.actor.group=3",
    "--config.phase.editor.group=3",
    "--config.phase.actor.rounds=2",
    "--config.phase.editor.rounds=1",
]


def phases(folder: Path, *overrides: str) -> Phases:
    given = [RIG, *SMALL, f"--config.output_dir={folder}", *overrides]
    accelerator = Accelerator()
    return start(
        load_config(given, methods=["rig"]), accelerator, Tracker(folder / "rig_tiny", accelerator)
    )


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(network: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    now = network.state_dict()
    return [name for name, tensor in before.items() if not torch.equal(now[name], tensor)]


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    found = [json.loads(x) for x in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in found]


@pytest.mark.slow
def test_each_phase_moves_its_own_lora_alone_and_others_draw_with_it(tmp_path):
    sized = ["--config.sample.batch_size=8", "--config.phase.editor.group=4"]
    both = phases(tmp_path, "--config.stages.total=1", *sized)
    parts = both.parts
    networks = {
        "diffuser": parts.diffuser.network,
        "editor": parts.editor.policy.network,
        "checker": parts.seer.vlm.network,
        "actor": parts.actor_for(parts.editor).vlm.network,
    }
    for phase in ("actor", "editor"):
        before = {name: state(network) for name, network in networks.items()}
        both.of(phase).run()
        changed = {name: moved(network, before[name]) for name, network in networks.items()}
        own = changed.pop(phase)
        assert own and all("lora_" in name for name in own)
        assert not any(changed.values()), changed
        line = lines(tmp_path / "rig_tiny" / phase)[0]
        assert line["selected"] > 0 and line["updates"] > 0
        assert line["ratio/first_max_dev"] < 1e-4
        assert line["evaluations"] > 0 and line["vlm_calls"] > 0 and line["form"] > 0
        page = tmp_path / "rig_tiny" / phase / "samples" / "stage_0001.png"
        assert page.stat().st_size > 2_000
        samples = lines(tmp_path / "rig_tiny" / phase, "samples.jsonl")
        size = {"actor": 3, "editor": 4}[phase]
        assert len(samples) == line["states"] * size
        for group in (samples[i : i + size] for i in range(0, len(samples), size)):
            one = len({s["edit"] for s in group}) == 1
            assert len({s["before"] for s in group}) == 1 and (phase == "actor" or one)

    folder = tmp_path / "rig_tiny"
    given = [f"--config.{phase}.lora={folder / phase}" for phase in ("actor", "editor")]
    trained = Parts(load_config([RIG, *given], methods=["rig"]), "cpu")
    plain = Parts(load_config([RIG], methods=["rig"]), "cpu")
    picture = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    asked = (picture, ["a red circle above a blue square"])
    made = []
    for some in (parts, trained, plain):
        vlm = some.actor_for(some.editor).vlm
        again = some.editor.edit(*asked, ["add a red circle"], seed=1, numbers=[0])
        made.append((vlm.p_yes(picture, [["is there a red circle?"]])[0], again.sampled.x0))
    for ours, theirs, untrained in zip(*made, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5) and not torch.equal(ours, untrained)


@pytest.mark.slow
def test_a_reward_that_is_always_the_same_moves_nothing_and_says_so(tmp_path, capsys):
    run = phases(
        tmp_path,
        "--config.stages.total=1",
        "--config.checker.threshold=0.99999999",  # P(yes) is never above it
        "--config.phase.actor.form_weight=0",
        "--config.phase.actor.rounds=1",
    ).of("actor")
    before = state(run.trainee.network)
    run.run()
    assert not moved(run.trainee.network, before)
    assert "nothing was selected: in each group all rewards are equal" in capsys.readouterr().out
    line = lines(tmp_path / "rig_tiny" / "actor")[0]
    assert line["tied"] == line["groups"] == 3 and line["selected"] == line["updates"] == 0


@pytest.mark.slow
def test_by_inversion_checkpointed_with_a_kl_term_and_from_another_lora(tmp_path, monkeypatch):
    """And with the shapes of half precision, in which log-probs are computed once more."""
    given = [
        "--config.editor.kind=inversion",
        "--config.editor.inversion_guidance=1",
        "--config.phase.editor.trained_steps=5",
        "--config.phase.actor.kl_weight=0.05",
        "--config.train.gradient_checkpointing=true",
        "--config.sample.batch_size=8",
        "--config.stages.total=1",
    ]
    first = phases(tmp_path / "first", *given)
    runs = [first.of("actor"), first.of("editor")]
    monkeypatch.setattr(ActorRun, "exact", False)
    for run in runs:
        run.run()
    for run in runs:
        line = lines(run.folder)[0]
        assert line["ratio/first_max_dev"] < 1e-4 and line["updates"] > 0
    loras = [f"--config.{run.name}.lora={run.folder}" for run in runs]
    second = phases(tmp_path / "second", *given, *loras)
    for run in runs:
        again = second.of(run.name)
        for one, other in zip(run.trainee.trainable(), again.trainee.trainable(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(UserError, match=r"is of rank 16: set lora\.rank"):
        phases(tmp_path / "third", *given, loras[0], "--config.lora.rank=8").of("actor")


@pytest.mark.slow
def test_the_actor_learns_beside_a_checker_of_its_own_network(tmp_path):
    """Whose verdicts do not move with it, and the checker's calls are not the actor's."""
    given = [f"--config.{part}.model={TINY_ACTOR}" for part in ("checker", "actor")]
    run = phases(tmp_path, "--config.sample.batch_size=8", *given).of("actor")
    parts, before = run.parts, state(run.trainee.network)
    pictures = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    asked = (pictures.to(torch.uint8), [["is there a red circle?"]] * 4)
    seen, written = (vlm.p_yes(*asked) for vlm in (parts.seer.vlm, run.actor.vlm))
    run.run()
    last = lines(run.folder)[-1]
    changed = moved(run.trainee.network, before)
    assert changed and all("lora_" in name for name in changed)
    assert last["updates"] > 0 and last["ratio/first_max_dev"] < 1e-4
    assert torch.equal(torch.cat(parts.seer.vlm.p_yes(*asked)), torch.cat(seen))
    assert not torch.equal(torch.cat(run.actor.vlm.p_yes(*asked)), torch.cat(written))


@pytest.mark.slow
def test_an_edit_may_earn_for_what_it_leaves_alone(tmp_path):
    """So that no group is a tie, though the checker never passes anything."""
    run = phases(
        tmp_path,
        "--config.stages.total=1",
        "--config.checker.threshold=0.99999999",
        "--config.phase.editor.likeness_weight=0.5",
    ).of("editor")
    run.run()
    line, samples = lines(run.folder)[0], lines(run.folder, "samples.jsonl")
    assert line["tied"] == 0 and line["updates"] > 0
    assert line["likeness"] == pytest.approx(sum(s["likeness"] for s in samples) / len(samples))
    for s in samples:
        assert s["checker"] == 0 and s["reward"] == pytest.approx(0.5 * s["likeness"])


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["actor", "editor"])
def test_a_phase_goes_on_bit_for_bit(phase, tmp_path):
    whole = phases(tmp_path / "whole").of(phase)
    whole.run()
    stopped = phases(tmp_path / "stopped").of(phase)
    stopped.resume()
    stopped.run_stage(0)
    resumed = phases(tmp_path / "stopped").of(phase)
    resumed.run()
    assert resumed.progress == whole.progress
    folders = [tmp_path / name / "rig_tiny" / phase for name in ("whole", "stopped")]
    for name in ("metrics.jsonl", "samples.jsonl"):
        one, other = (lines(folder, name) for folder in folders)
        assert one == other and len(one) > 1
    for one, other in zip(whole.trainee.trainable(), resumed.trainee.trainable(), strict=True):
        assert torch.equal(one, other)
    last = [folder / "checkpoints" / "stage_0002" for folder in folders]
    file = next(last[0].glob("*.safetensors")).name
    assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes()


@pytest.mark.slow
def test_it_ends_where_checker_and_truth_part(tmp_path):
    n = torch.linspace(-0.02, 0.02, 24)
    values = {"checker": [0.4 + n, 0.9 + n], "exact": [0.6 + n, 0.3 + n]}
    history = {
        name: [
            {"stage": i, "of": ["heldout", 3, 1, 0, 24], "means": v.tolist()}
            for i, v in enumerate(some)
        ]
        for name, some in values.items()
    }
    few = ["--config.eval.every=2", "--config.eval.num_prompts=2", "--config.eval.rounds=[1]"]
    both = phases(tmp_path, "--config.train.stop_on_heldout=true", *few)
    run = both.of("actor")
    run.resume()
    assert not run.over()
    run.load_state({"history": history})
    run.save()
    again = both.of("actor")
    again.run()  # saved as one that has ended
    assert again.progress.stage == 0 and again.history == history and again.over()
    again.config.train.stop_on_heldout = False
    assert again.parted() == 0 and not again.over()
    history["exact"][0]["of"] = history["checker"][0]["of"] = ["heldout", 3, 1, 0, 12]
    again.load_state({"history": history})
    assert again.parted() is None  # of other pictures


def test_a_checker_of_the_actors_model_goes_without_its_lora():
    given = [f"--config.{part}.model={TINY_ACTOR}" for part in ("checker", "actor")]
    parts = Parts(load_config([RIG, *given], methods=["rig"]), "cpu", ("actor",))
    actor = parts.actor_for(parts.editor).vlm
    assert parts.seer.vlm.network is actor.network and actor.adapted and not parts.seer.vlm.adapted
    assert any(p.requires_grad for p in actor.network.parameters())


@pytest.mark.parametrize(
    "flag, said",
    [
        ("phase.actor.group=1", r"phase\.actor\.group=1 .*nothing to be compared with"),
        ("phase.editor.group=1", r"phase\.editor\.group=1 .*nothing to be compared with"),
        ("phases=[]", r"phases=\(\) .*some of actor, editor"),
        ('phases=["actor","critic"]', "some of actor, editor, each once"),
        ("train.stop_on_heldout=true --config.eval.every=0", "eval.every above 0"),
        ("phase.actor.learning_rate=0", r"phase\.actor\.learning_rate=0\.0 .*above 0"),
        ("train.learning_rate=-1", r"train\.learning_rate=-1\.0 .*above 0"),
        ("phase.actor.clip_range_high=0.1", r"at least clip_range=0\.2"),
        ("phase.editor.likeness_weight=-1", r"likeness_weight=-1\.0 .*at least 0"),
        ("stages.total=0", r"stages\.total=0 .*at least 1"),
    ],
)
def test_what_cannot_be_is_refused(flag, said):
    with pytest.raises(UserError, match=said):
        load_config([RIG, *f"--config.{flag}".split()], methods=["rig"])


def test_more_trained_steps_than_an_edit_has_are_refused_where_it_is_trained():
    flags = [RIG, "--config.editor.num_steps=8"]
    with pytest.raises(UserError, match=r"trained_steps=6 .*at most 4 of an edit's 8 steps"):
        check_files(load_config(flags, methods=["rig"]))
    check_files(load_config([*flags, '--config.phases=["actor"]'], methods=["rig"]))


def test_what_another_phase_has_does_not_part_runs_but_whose_words_they_are_does(tmp_path):
    both = load_config([RIG], methods=["rig"])
    (tmp_path / "config.json").write_text(json.dumps(flatten(phase_config(both, "editor"))))

    def check(*flags: str) -> None:
        own = phase_config(load_config([RIG, *flags], methods=["rig"]), "editor")
        check_same_run(tmp_path, own, free_of("editor"))

    check("--config.phase.actor.micro_batch=1", "--config.phase.editor.micro_batch=1")
    check("--config.phase.actor.stages=99", "--config.train.stop_on_heldout=true")
    with pytest.raises(UserError, match=r"train\.learning_rate=0\.003, not 0\.1"):
        check("--config.phase.editor.learning_rate=0.1")
    with pytest.raises(UserError, match=r"config\.phases="):
        check('--config.phases=["editor"]')
    with pytest.raises(UserError, match="holds a run of the method 'rig'"):
        check_same_run(tmp_path, load_config(["--config=config/stage_process.py:tiny"]))


def test_sharded_training_is_refused():
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(UserError, match=r"use config/accelerate/multi_gpu\.yaml"):
        start(load_config([RIG], methods=["rig"]), sharded, None)


def test_a_phases_config_has_its_own_values_unless_they_are_set_for_both():
    config = load_config([RIG], methods=["rig"])
    actor, editor = (phase_config(config, phase) for phase in ("actor", "editor"))
    assert (actor.output_dir, actor.run_name) == ("runs/rig_tiny", "actor")
    assert actor.phases == ("actor",)
    assert actor.stages.total == config.phase.actor.stages
    assert editor.train.learning_rate == config.phase.editor.learning_rate
    assert config.stages.total is None  # left as it was
    both = load_config([RIG, "--config.stages.total=3"], methods=["rig"])
    assert phase_config(both, "editor").stages.total == 3
