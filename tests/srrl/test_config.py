"""Presets parse, overrides are typed, and every bad value is one line naming key and remedy."""

import json

import pytest

from srrl.config import REPOSITORY, flatten, load_config, load_saved
from srrl.errors import UserError
from srrl.prompts import check_files, foreign_heldout, split_prompts

FILE = "config/stage_process.py"
SINGLE = ["sd14", "tiny", "ddpo", "b2diffurl", "selective", "srrl_paper"]


@pytest.mark.parametrize(
    "preset", [*SINGLE, "tiny+ddpo", "tiny+b2diffurl", "tiny+srrl_paper", "tiny+released"]
)
def test_every_preset_is_valid_and_its_files_are_there(preset):
    config = load_config([f"--config={FILE}:{preset}"])
    check_files(config)


def test_sd14_has_the_methods_rewards_and_otherwise_the_releases_values():
    values = flatten(load_config([f"--config={FILE}:sd14"]))
    expected = {
        "sample.num_steps": 20,
        "sample.guidance_scale": 5.0,
        "sample.eta": 1.0,
        "sample.num_batches_per_stage": 8,  # times 4 are the 32 prompts of the release
        "sample.batch_size": 4,
        "branch.count": 5,
        "reflect.denoise_guidance": 3.0,
        "reflect.inversion_guidance": 0.1,
        "reflect.eta": 0.0,
        "reflect.train_rounds": "last",
        "stages.total": 50,
        "stages.per_cycle": 5,
        "reward.history": 8,
        "select.pos_threshold": 0.5,
        "select.neg_threshold": -0.5,
        "train.clip_range": 0.1,
        "train.adv_clip_max": 5.0,
        "train.num_inner_epochs": 2,
        "train.trajectories_per_update": 64,
        "train.learning_rate": 1e-4,
        "train.adam_beta1": 0.9,
        "train.adam_beta2": 0.999,
        "train.adam_weight_decay": 1e-4,
        "train.adam_epsilon": 1e-8,
        "train.max_grad_norm": 1.0,
        "lora.rank": 4,
        "lora.alpha": 4,
        "lora.target_modules": ("to_q", "to_k", "to_v", "to_out.0"),
        "seed": 300,
        "interval.skip_last": 0,
        "pretrained.model": "CompVis/stable-diffusion-v1-4",
    }
    assert {k: values[k] for k in expected} == expected
    assert values["reward.models"] == {"vqascore": 1.0, "imagereward": 1.0}


def test_the_baselines_differ_from_sd14_in_what_defines_them():
    def differing(preset):
        base = flatten(load_config([f"--config={FILE}:sd14"]))
        other = flatten(load_config([f"--config={FILE}:{preset}"]))
        return {k: v for k, v in other.items() if v != base[k] and k != "run_name"}

    assert differing("ddpo") == {
        "reflect.rounds": 1,
        "interval.steps": 20,
        "branch.count": 1,
        "sample.num_batches_per_stage": 40,
        "select.mode": "all",
    }
    assert differing("b2diffurl") == {"reflect.rounds": 1}
    assert differing("selective") == {"reflect.when": "failed", "select.mode": "all"}
    assert differing("srrl_paper") == {"reflect.train_rounds": "all"}
    assert differing("released") == {
        "reward.models": {"clipscore": 1.0},
        "prompts.draw": "replacement",
        "stages.seed_cycle": 5,
        "train.updates": "full",
    }


def test_overrides_take_the_type_of_the_key():
    config = load_config(
        [
            f"--config={FILE}:tiny",
            "--config.sample.guidance_scale=3",
            "--config.reflect.rounds",
            "4",
            '--config.reward.models={"shapes": 2}',
            '--config.lora.target_modules=["to_q"]',
        ]
    )
    assert config.sample.guidance_scale == 3.0 and config.reflect.rounds == 4
    assert config.reward.models.to_dict() == {"shapes": 2}
    assert config.lora.target_modules == ("to_q",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=nowhere.py:tiny"], "no file 'nowhere.py'"),
        ([f"--config={FILE}:tinny"], "unknown preset 'tinny'"),
        ([f"--config={FILE}"], "unknown preset ''"),
        ([], "no config"),
        (["--sample.num_steps=3"], "unknown argument"),
        (["--config.sample.num_step=3"], "did you mean 'sample.num_steps'"),
        (["--config.sample=3"], "unknown config key 'sample'"),
        (["--config.sample.num_steps=many"], "sample.num_steps=many: expected int"),
        (["--config.sample.num_steps=2.5"], "expected int"),
        (["--config.train.learning_rate=fast"], "expected float"),
        (["--config.reward.models=shapes"], "expected JSON"),
        (["--config.sample.num_steps=0"], "sample.num_steps=0 is out of range"),
        (["--config.sample.num_steps=1001"], "sample.num_steps=1001"),
        (["--config.branch.count=0"], "branch.count=0 is out of range"),
        (["--config.train.learning_rate=-0.1"], "train.learning_rate=-0.1 is out of range"),
        (["--config.train.learning_rate=nan"], "train.learning_rate=nan"),
        (["--config.sample.eta=0"], "sample.eta=0.0 is out of range"),
        (["--config.sample.eta=1.5"], "sample.eta=1.5"),
        (["--config.reflect.rounds=0"], "reflect.rounds=0"),
        (["--config.interval.right=11"], "interval.right=11"),
        (["--config.interval.steps=11"], "interval.steps=11"),
        (["--config.mixed_precision=fp8"], "mixed_precision='fp8'"),
        (["--config.tracker=mlflow"], "tracker='mlflow'"),
        (["--config.reflect.train_rounds=some"], "reflect.train_rounds='some'"),
        (["--config.reward.models={}"], "reward.models"),
        (["--config.run_name=a/b"], "run_name='a/b'"),
        (["--config.select.neg_threshold=0.9"], "select.neg_threshold=0.9"),
        (["--config.seed"], "needs a value"),
        (["--config.stages.seed_cycle=0"], "stages.seed_cycle=0"),
        (["--config.prompts.draw=twice"], "prompts.draw='twice'"),
        (["--config.train.updates=half"], "train.updates='half'"),
        (["--config.train.positive_weight=-1"], "train.positive_weight=-1"),
        (["--config.eval.every=-1"], "eval.every=-1"),
        (["--config.reward.worker.address=h:1"], "it is used with reward.backend"),
        (["--config.branch.count=1", "--config.reward.history=0"], "nothing to be compared with"),
        (['--config.reward.models={"shapes": 0}'], "a weight of 0"),
        (["--config.eval.rounds=[1, 0]"], "eval.rounds=(1, 0) is out of range: 1 to 1000"),
        (["--config.eval.rounds=[]"], "eval.rounds=() is out of range: at least one int"),
        (["--config.eval.rounds=two"], "eval.rounds=two: expected JSON list"),
        (["--config.pretrained.lora=x", "--config.use_lora=false"], "pretrained.lora='x'"),
        # Taken once, to crash, to hang or to train nothing later.
        (["--config.sample.num_steps=1000"], "sample.num_steps=1000 is out of range: 1 to 999"),
        (["--config.eval.first_seed=-1"], "eval.first_seed=-1 is out of range: 0 to 9"),
        ([f"--config.seed={2**63}"], "is out of range: 0 to 9223372036854775807"),
        ([f"--config.eval.first_seed={2**63 - 1}"], "with eval.seeds up to"),
        (["--config.lora.target_modules=[1, 2]"], "at least one str, each once"),
        (['--config.lora.target_modules=[["to_q"]]'], "at least one str, each once"),
        (["--config.eval.rounds=[1000000]"], "1 to 1000"),
        (["--config.reward.device=gpu7"], "cpu, cuda or cuda:NUMBER"),
        (['--config.reward.models={"shapes": Infinity}'], "at least one, as"),
        (['--config.reward.models={"shapes": 1e308}'], "at least one, as"),
        (['--config.reward.models={"shapes": true}'], "at least one, as"),
        (["--config.run_name=.."], "run_name='..' is out of range: a folder's name"),
        (["--config.run_name=" + "a" * 300], "a folder's name, of 200 bytes at most"),
        (["--config.run_name=a\nb"], "run_name='a\\nb' is out of range"),
        (["--config.run_name=a\0b"], "run_name='a\\x00b' is out of range"),
        (["--config.run_name= "], "run_name=' ' is out of range"),
        (["--config.output_dir="], "output_dir='' is out of range"),
        (["--config.pretrained.model="], "pretrained.model='' is out of range"),
        (["--config.train.learning_rate=inf"], "train.learning_rate=inf is out of range"),
        (["--config.train.clip_range=1e308"], "at most 1,000,000"),
        (["--config.stages.total=1000000000000"], "at most 1,000,000"),
        (["--config.branch.count=100000000"], "at most 10,000"),
        (["--config.lora.rank=1000000000"], "at most 10,000"),
        (["--config.sample.resolution=100000"], "at most 20,000"),
        (["--config.eval.rounds=" + "[" * 5000], "expected JSON list"),
        (["--config=README.md:tiny"], "'README.md' is no Python file"),
        (["--config.reflect.reuse=0"], "reflect.reuse=0"),
        (["--config.reflect.num_steps=99"], "reflect.num_steps=99"),
        (["--config.reflect.when=never"], "reflect.when"),
        (["--config.reflect.when=always", "--config.reflect.clamp=true"], "reflect.clamp"),
        (["--config.reflect.reuse=2", "--config.reflect.train_rounds=all"], "reflect.reuse"),
        (["--config.reflect.when=failed", "--config.reflect.depth=7"], "reflect.when"),
        (["--config.reflect.baseline=0.5"], "reflect.baseline"),
        (["--config.reflect.rounds=2", "--config.reflect.baseline=2"], "reflect.baseline"),
        (["--config.reward.rounds=mean"], "reward.rounds"),
        (["--config.train.round_weights=linear"], "train.round_weights"),
        (["--config.train.round_weights=steep"], "train.round_weights"),
    ],
)
def test_bad_configs_are_refused_in_one_line(arguments, said):
    default = "" if not arguments or arguments[0].startswith("--config=") else f"{FILE}:tiny"
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        load_config(arguments, default=default)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("c.reflect.eta_ = 1.0", "line 257: unknown config key 'eta_'"),
        ("c.reflect.denoise_guidanc = 6.0", "did you mean 'denoise_guidance'?"),
        ('c.reflect.eta = "much"', "TypeError: Could not override field 'eta'"),
        ("c.reflect.eta = (", "SyntaxError: '(' was never closed"),
        ("c.reflect.eta = half", "NameError: name 'half' is not defined"),
        ("raise SystemError", "line 257: SystemError"),
    ],
)
def test_a_mistake_in_an_edited_config_file_is_named_with_its_line(
    tmp_path, monkeypatch, written, said
):
    text = (REPOSITORY / FILE).read_text(encoding="utf-8")
    before, _, after = text.partition("c.reflect.eta = 1.0")
    assert after
    line = before.count("\n") + 1
    (tmp_path / "mine.py").write_text(before + written + after, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / "mine.py", "mine.py", "./mine.py"):
        with pytest.raises(UserError, match=r"^[^\n]*$") as error:
            load_config([f"--config={file}:tiny"])
        assert said.replace("line 257", f"line {line}") in str(error.value)
        assert f"mine.py, line {line}: " in str(error.value)


def test_a_config_file_of_no_known_method_is_refused(tmp_path):
    text = (REPOSITORY / FILE).read_text(encoding="utf-8")
    changed = text.replace("c.reflect.eta = 1.0", 'c.method = "srll"')
    (tmp_path / "mine.py").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.method='srll': one of srrl, rig"):
        load_config([f"--config={tmp_path / 'mine.py'}:tiny"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("", "cannot be read as JSON"),
        ("not json", "cannot be read as JSON"),
        ("[]", "is empty"),
        ('["a", ""]', "is empty"),
        ('{"a": 1}', "must be a list of strings"),
        ("[1, 2]", "must be a list of strings"),
    ],
)
def test_bad_prompt_files_are_named_with_their_fault(tmp_path, text, said):
    file = tmp_path / "prompts.json"
    if text is not None:
        file.write_text(text)
    config = load_config([f"--config={FILE}:tiny", f"--config.prompts.heldout={file}"])
    with pytest.raises(UserError, match=r"prompts\.json") as error:
        check_files(config)
    assert said in str(error.value)


@pytest.mark.parametrize(("model", "said"), [("./nowhere", "no such folder"), ("m.gguf", "GGUF")])
def test_a_missing_local_model_is_refused_before_anything_is_loaded(model, said):
    config = load_config([f"--config={FILE}:tiny", f"--config.pretrained.model={model}"])
    with pytest.raises(UserError, match=f"{model}.*{said}"):
        check_files(config)


def test_a_saved_config_comes_back(tmp_path):
    config = load_config([f"--config={FILE}:tiny+ddpo", "--config.seed=7"])
    (tmp_path / "config.json").write_text(json.dumps(flatten(config)))
    assert flatten(load_saved(tmp_path / "config.json")) == flatten(config)


def test_a_runs_own_config_is_a_preset_and_resume_is_the_run_wherever_it_is(tmp_path):
    flags = ["--config.seed=7", "--config.output_dir=elsewhere", "--config.run_name=old"]
    config = load_config([f"--config={FILE}:tiny", *flags])
    run = tmp_path / "runs" / "new"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(flatten(config)))
    assert flatten(load_config([f"--config={run / 'config.json'}"])) == flatten(config)
    other = load_config(["--config", str(run / "config.json"), "--config.seed=8"])
    assert (other.seed, other.run_name) == (8, "old")
    for given in ([f"--resume={run}"], ["--resume", str(run)]):
        resumed = load_config([*given, "--config.stages.total=99"])
        assert (resumed.output_dir, resumed.run_name) == (str(run.parent), "new")
        assert (resumed.seed, resumed.stages.total) == (7, 99)
    begun = [{"config": flatten(config) | {"seed": n}} for n in (8, 9)]
    (run / "environment.json").write_text(json.dumps(begun))
    assert load_config([f"--resume={run}"]).seed == 9
    (run / "environment.json").write_text('[{"config": {"run_name": "')
    assert load_config([f"--resume={run}"]).seed == 7


def test_a_run_whose_paths_are_relative_is_resumed_by_the_same_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "new").mkdir(parents=True)
    config = load_config([f"--config={FILE}:tiny"])
    (tmp_path / "runs" / "new" / "config.json").write_text(json.dumps(flatten(config)))
    for given in ("runs/new", "runs/new/"):
        resumed = load_config(["--resume", given])
        assert (resumed.output_dir, resumed.run_name) == ("runs", "new")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resume=nowhere"], "nowhere/config.json is not there, or not what a run writes"),
        (["--resume"], "--resume needs a value"),
        (["--config=nowhere.json"], "nowhere.json is not there, or not what a run writes"),
        (["--resume=.", f"--config={FILE}:tiny"], "--resume .: has a config of its own"),
    ],
)
def test_what_is_no_run_cannot_be_resumed(flags, said):
    with pytest.raises(UserError, match=said):
        load_config(flags)


def test_held_out_prompts_may_be_none():
    config = load_config([f"--config={FILE}:tiny", "--config.prompts.heldout=none"])
    assert not config.eval.heldout and [*split_prompts(config)] == ["train"]
    check_files(config)


def test_the_projects_held_out_prompts_beside_own_ones_are_said(tmp_path):
    (tmp_path / "own.json").write_text('["a red circle above a blue square"]')
    own, preset = f"--config.prompts.train={tmp_path / 'own.json'}", f"--config={FILE}:tiny"
    said = foreign_heldout(load_config([preset, own]))
    assert "own.json is trained on and config/prompts/" in said and "or none" in said
    both = f"--config.prompts.heldout={tmp_path / 'own.json'}"
    for flags in ([], [own, "--config.prompts.heldout=none"], [own, both], [both]):
        assert foreign_heldout(load_config([preset, *flags])) == ""
