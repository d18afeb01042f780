"""Reading the config: presets, overrides, and every check that needs no model.

Nothing here imports torch, so that a bad command is answered at once.
"""

import difflib
import importlib.util
import json
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from srrl.errors import UserError
from srrl.methods import METHODS
from srrl.repository import REPOSITORY

ENVIRONMENT = "environment.json"  # in a run's folder: what made it
COMMAND = "SRRL_COMMAND"  # what was typed, for a process below it


def load_config(
    argv: Sequence[str], default: str = "", methods: Sequence[str] = ("srrl",)
) -> ConfigDict:
    """The config of `--config FILE.py:PRESET --config.key=value ...`, checked; instead of a preset
    that of `--config RUN/config.json`, or of `--resume RUN` with the name of its folder.

    methods: one of which it must be of; by default SRRL. Raises UserError for an unknown file,
    preset or key, a value of the wrong type or range, another method.
    """
    source, resumed, overrides = default, "", []
    arguments = list(argv)
    while arguments:
        name, equals, value = arguments.pop(0).partition("=")
        if not equals and (name in ("--config", "--resume") or name.startswith("--config.")):
            if not arguments:
                raise UserError(f"{name} needs a value: {name}=VALUE")
            value = arguments.pop(0)
        if name == "--config":
            source = value
        elif name == "--resume":
            resumed = value
        elif name.startswith("--config."):
            overrides.append((name.removeprefix("--config."), value))
        else:
            raise UserError(
                f"unknown argument {name!r}: expected --config FILE.py:PRESET or --config.KEY=VALUE"
            )
    if resumed:
        if source != default:
            raise UserError(f"--resume {resumed}: has a config of its own: leave --config out")
        source, config = resumed, load_run(Path(resumed))
    elif not source:
        raise UserError("no config: give --config config/stage_process.py:PRESET")
    else:
        config = load_saved(Path(source)) if source.endswith(".json") else _preset(source)
    for key, value in overrides:
        _override(config, key, value)
    if config.prompts.heldout == "none":
        config.eval.heldout = False
    check_config(config)
    if config.method not in methods:
        other = METHODS[methods[0]].preset.partition(":")[0]
        raise UserError(f"{source} is of the method {config.method!r}: give a preset of {other}")
    return config


def parse(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """A command's own arguments, and the --config.KEY=VALUE (or --config.KEY VALUE) among them.

    Raises UserError for an argument that the command does not know.
    """
    own, overrides, arguments = [], [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--config."):
            own.append(argument)
            continue
        overrides.append(argument)
        if "=" not in argument and arguments:
            overrides.append(arguments.pop(0))
    args, unknown = parser.parse_known_args(own)
    if unknown:
        name = parser.prog
        typed = f"python scripts/{name}" if name.endswith(".py") else name
        raise UserError(
            f"unknown argument {unknown[0]!r}: expected --config.KEY=VALUE, or what "
            f"`{typed} --help` shows"
        )
    return args, overrides


def parse_options(text: str | None) -> dict[str, dict[str, Any]]:
    """Rewards' keywords by name, of a command's --options. Raises UserError."""
    try:
        options = json.loads(text or "{}")
        right = isinstance(options, dict) and all(isinstance(o, dict) for o in options.values())
    except (ValueError, RecursionError):
        right = False
    if not right:
        raise UserError(f'--options {cut(str(text))}: expected JSON like {{"vqascore": {{...}}}}')
    return options


def load_study(source: str) -> ConfigDict:
    """The study of `config/study.py:NAME`. Raises UserError for an unknown file or name."""
    return _preset(source)


def _preset(source: str) -> ConfigDict:
    path, _, preset = source.partition(":")
    file = next((p for p in (Path(path), REPOSITORY / path) if p.is_file()), None)
    if file is None:
        raise UserError(f"--config: no file {path!r}: try config/stage_process.py:PRESET")
    spec = importlib.util.spec_from_file_location("srrl_config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path!r} is no Python file: try config/stage_process.py:PRESET")
    module = importlib.util.module_from_spec(spec)
    if str(REPOSITORY) not in sys.path:  # for a file of one's own that begins with one of ours
        sys.path.append(str(REPOSITORY))
    with _faults_of(file):
        spec.loader.exec_module(module)
        known = list(module.PRESETS)
    unknown = [name for name in preset.split("+") if name not in known]
    if unknown:
        raise UserError(
            f"unknown preset {unknown[0]!r} in {source}: known are {', '.join(known)} (its PRESETS)"
        )
    try:
        with _faults_of(file):
            config = module.get_config(preset)
    except ValueError as error:
        raise UserError(f"presets {preset!r} do not go together: {error}") from None
    config.lock()
    return config


@contextmanager
def _faults_of(file: Path) -> Iterator[None]:
    """Turn an error in a config file's code into a UserError with its line; ValueErrors stay."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        line = getattr(error, "lineno", None)  # of a SyntaxError
        for frame in traceback.extract_tb(error.__traceback__):
            line = frame.lineno if Path(frame.filename).resolve() == file.resolve() else line
        what = ": ".join([type(error).__name__, *map(str, error.args[:1])])
        unknown = re.search(r'Key "(\w+)" does not exist', what)  # ConfigDict's, which is locked
        meant = re.search(r'Did you mean "(\w+)"', what)
        if unknown:
            what = f"unknown config key {unknown[1]!r}"
            what += f": did you mean {meant[1]!r}?" if meant else ""
        raise UserError(f"{file}, line {line}: {what}") from None


def saved_values(path: Path) -> dict[str, Any] | None:
    """The flat values that a run wrote as config.json; None where it is not there, or another
    program's."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(saved, dict) and {"run_name", "stages.total"} <= saved.keys()
    return saved if ours else None


def starts(run: Path) -> list[dict[str, Any]]:
    """What a run's environment.json has of each of its starts; none where it cannot be read."""
    try:
        entries = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [x for x in entries if isinstance(x, dict)] if isinstance(entries, list) else []


def load_run(run: Path) -> ConfigDict:
    """The config that a run was last started with, of the folder's name and place now. Raises
    UserError where it is no run's folder."""
    begun = [entry["config"] for entry in starts(run) if isinstance(entry.get("config"), dict)]
    file = run / (ENVIRONMENT if begun else "config.json")
    config = config_of(begun[-1], file) if begun else load_saved(file)
    config.output_dir, config.run_name = str(run.resolve().parent), run.resolve().name
    if not run.is_absolute():
        config.output_dir = str(run.parent)
    return config


def load_saved(path: Path) -> ConfigDict:
    """The config a run wrote as config.json. Raises UserError if it is not there or not valid."""
    saved = saved_values(path)
    if saved is None:
        raise UserError(f"{path} is not there, or not what a run writes: give a run's folder")
    return config_of(saved, path)


def config_of(saved: dict[str, Any], path: Path) -> ConfigDict:
    """The config of flat values that a run wrote into a file. Raises UserError."""
    method = METHODS.get(str(saved.get("method", "srrl")))
    if not method:
        raise UserError(f"{path}: unknown method {saved['method']!r}: it is of another version")
    config = _preset(method.preset)
    known = flatten(config)
    for key, value in saved.items():
        if key not in known:
            raise UserError(f"{path}: unknown config key {key!r}: it is of another version")
        *sections, leaf = key.split(".")
        owner = config
        for section in sections:
            owner = owner[section]
        try:
            if value is None and known[key] is not None:
                raise TypeError
            if key in ("reward.models", "reward.options"):
                replace_dict(config, owner, leaf, value)
            elif owner.get_type(leaf) is tuple:
                owner[leaf] = tuple(value) if isinstance(value, list) else (value,)
            else:
                owner[leaf] = value
        except (TypeError, ValueError, AttributeError, OverflowError):
            kind = owner.get_type(leaf).__name__
            raise UserError(
                f"{path}: {key}={cut(repr(value))}: expected {kind}, as a run writes"
            ) from None
    try:
        check_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def replace_dict(config: ConfigDict, owner: ConfigDict, leaf: str, value: dict) -> None:
    """Replace a section of the config whose keys are rewards' names, which may have dots."""
    with config.unlocked():
        owner[leaf] = ConfigDict(value, allow_dotted_keys=True)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Every leaf value by its dotted key."""
    leaves = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict) and name not in ("models", "options"):
            leaves.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            leaves[name] = value.to_dict() if isinstance(value, ConfigDict) else value
    return leaves


def _override(config: ConfigDict, key: str, text: str) -> None:
    known = flatten(config)
    if key == "method":
        raise UserError("config.method belongs to its file: give a preset of the other one's")
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"see {METHODS[config.method].preset.split(':')[0]}"
        )
        raise UserError(f"unknown config key {key!r}: {hint}")
    *sections, leaf = key.split(".")
    owner = config
    for section in sections:
        owner = owner[section]
    kind = owner.get_type(leaf)
    try:
        value = _parse(text, kind)
    except (ValueError, RecursionError):
        name = {ConfigDict: 'JSON like {"name": 1.0}', tuple: "JSON list like [1, 2]"}.get(
            kind, kind.__name__
        )
        raise UserError(f"--config.{key}={cut(text)}: expected {name}") from None
    if kind is ConfigDict:
        replace_dict(config, owner, leaf, value)
    else:
        owner[leaf] = value


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        return (
            {"true": True, "false": False}[text.lower()]
            if text.lower() in ("true", "false")
            else _refuse()
        )
    if kind in (int, float, str):
        return kind(text)
    value = json.loads(text)
    if kind is ConfigDict:
        return value if isinstance(value, dict) else _refuse()
    return tuple(value) if isinstance(value, list) else (value,)


def _refuse() -> None:
    raise ValueError


def check_config(c: ConfigDict) -> None:
    """Raise UserError for a value out of its range; names the key, the value and the range."""
    if c.method not in METHODS:
        raise UserError(f"config.method={c.method!r}: one of {', '.join(METHODS)}")
    values = flatten(c)

    def require(ok: bool, key: str, expected: str) -> None:
        if not ok:
            raise UserError(f"config.{key}={cut(repr(values[key]))} is out of range: {expected}")

    METHODS[c.method].check(c, values, require)


def cut(text: str, most: int = 300) -> str:
    """A value as it is shown."""
    return text if len(text) <= most else f"{text[:most]}..."


def resolve(path: str) -> str:
    """A path as given, or the project's own if it only exists there; hub names unchanged."""
    own = project_path(path)
    return str(own) if not Path(path).exists() and own.exists() else path


def project_path(path: str) -> Path:
    """Where a path of the checkout is: in it, or in the installed package."""
    ours = Path(path).parts[:1] == ("srrl",)
    return (Path(__file__).resolve().parents[1] if ours else REPOSITORY) / path
