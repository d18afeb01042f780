"""A real worker process: same scores, tokens, deaths, errors, and nobody left behind."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from rewards import client, load_rewards, protocol, score_all
from rewards.client import Worker, worker_rewards
from rewards.scoring import Scorer, rewards_of
from rewards.worker import TOKEN, Server, main
from srrl.config import REPOSITORY, load_config
from srrl.errors import UserError
from srrl.life import ENDING
from tests.conftest import PRESET, PROMPTS

pytestmark = pytest.mark.slow  # each has processes
HERE = "tests.rewards.test_worker"


class Mean:
    """Mean brightness; ends the process for the prompt "die", once if a file is named."""

    def __init__(self, once: str = ""):
        self.once, self.counts = once, {"calls": 0}

    def score(self, images, prompts):
        self.counts["calls"] += 1
        if "die" in prompts and not (self.once and os.path.exists(self.once)):
            if self.once:
                open(self.once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if "fault" in prompts:
            raise RuntimeError("a fault of the reward")
        return images.float().mean((1, 2, 3))


@pytest.fixture(scope="module")
def worker():
    worker = Worker({"shapes": {}, f"{HERE}:Mean": {}})
    yield worker
    worker.close()


def pictures(n=4, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator).to(torch.uint8)


def test_a_workers_scores_are_those_of_this_process(worker):
    local = load_rewards(["shapes", f"{HERE}:Mean"])
    ours, theirs = (score_all(r, pictures(), PROMPTS) for r in (local, worker_rewards(worker)))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_what_a_reward_counts_is_known_here(worker):
    counting, plain = worker_rewards(worker)[f"{HERE}:Mean"], worker_rewards(worker)["shapes"]
    assert plain.counts == {} and counting.counts["calls"] >= 0
    before = worker.request(
        {"do": "score", "reward": f"{HERE}:Mean", "prompts": ["a"], "shape": [1, 3, 8, 8]},
        bytes(192),
        4,
    )[0]
    counting.score(pictures(1), ["a"])
    assert counting.counts["calls"] == before["counts"]["calls"] + 1


def test_prompts_are_checked_there_and_errors_come_back_without_harm(worker):
    rewards = worker_rewards(worker)
    with pytest.raises(ValueError, match="a walrus"):
        rewards["shapes"].check_prompts(["a walrus"])
    with pytest.raises(
        UserError, match=r"failed in score: RuntimeError: a fault .* \(test_worker.py:"
    ):
        rewards[f"{HERE}:Mean"].score(pictures(1), ["fault"])
    assert len(rewards["shapes"].score(pictures(), PROMPTS)) == 4


def test_a_worker_that_was_killed_is_started_again_and_the_batch_scored(worker, capfd):
    rewards = worker_rewards(worker)
    before = rewards["shapes"].score(pictures(), PROMPTS)
    os.kill(worker.process.pid, signal.SIGKILL)
    assert torch.equal(rewards["shapes"].score(pictures(), PROMPTS), before)
    assert "starting again" in capfd.readouterr().out


def test_a_worker_that_dies_while_scoring_scores_the_batch_after_all(tmp_path):
    worker = Worker({f"{HERE}:Mean": {"once": str(tmp_path / "died")}})
    (reward,) = worker_rewards(worker).values()
    expected = pictures(2).float().mean((1, 2, 3))
    torch.testing.assert_close(reward.score(pictures(2), ["a", "die"]), expected)
    assert (tmp_path / "died").exists()
    worker.close()


def test_a_worker_that_stays_dead_ends_the_run_in_one_line():
    worker = Worker({f"{HERE}:Mean": {}})
    (reward,) = worker_rewards(worker).values()
    with pytest.raises(UserError, match=r"failed 3 times.*run the same command again"):
        reward.score(pictures(1), ["die"])
    worker.close()


def test_a_worker_that_cannot_load_is_one_line(capfd):
    with pytest.raises(UserError, match="ended with exit code 2 while loading nope:Nope"):
        Worker({"nope:Nope": {}})
    assert "cannot import 'nope:Nope'" in capfd.readouterr().err
    with pytest.raises(UserError, match="no/such/python"):
        Worker({"shapes": {}}, python="/no/such/python")


@pytest.fixture
def listening():
    """A worker started by hand; its port."""
    with by_hand("--host", "127.0.0.1") as address:
        yield int(address.rpartition(":")[2])


@contextmanager
def by_hand(*flags: str) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rewards.worker", "--models", '{"shapes": {}}', *flags],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, TOKEN: "secret"},
    )
    yield process.stdout.readline().split()[1]
    process.terminate()
    process.wait()


def test_a_worker_at_an_address_asks_for_the_token(listening, monkeypatch):
    overrides = [
        "--config.reward.backend=worker",
        f"--config.reward.worker.address=127.0.0.1:{listening}",
    ]
    config = load_config([PRESET, *overrides])
    monkeypatch.setenv(TOKEN, "secret")
    scores = score_all(rewards_of(config, "cpu"), pictures(), PROMPTS)
    assert torch.equal(
        scores["shapes"], load_rewards(["shapes"])["shapes"].score(pictures(), PROMPTS)
    )
    monkeypatch.setenv(TOKEN, "guess")
    with pytest.raises(UserError, match="the token is not this worker's"):
        rewards_of(config, "cpu")
    monkeypatch.delenv(TOKEN)
    with pytest.raises(UserError, match=f"set {TOKEN}"):
        rewards_of(config, "cpu")
    monkeypatch.setenv(TOKEN, "secret")
    config = load_config([PRESET, overrides[0], "--config.reward.worker.address=127.0.0.1:1"])
    with pytest.raises(UserError, match=r"no reward worker at 127\.0\.0\.1:1"):
        rewards_of(config, "cpu")
    with pytest.raises(UserError, match=f"worker at 127.0.0.1:{listening} has no nope"):
        Worker({"shapes": {}, "nope": {}}, address=f"127.0.0.1:{listening}")
    with pytest.raises(UserError, match=r"reward\.worker\.address='here': expected HOST:PORT"):
        Worker({"shapes": {}}, address="here")


@pytest.fixture
def handlers():
    """Puts the handlers of signals back."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--models", "[]"], r"--models \[\]: expected JSON"),
        (["--port", "7000"], "--port 7000: needs a --host"),
        (["--host", "192.0.2.1", "--port", "7000"], "--host 192.0.2.1 --port 7000: cannot listen"),
        ([], "a socket: cannot listen there"),
    ],
)
def test_what_a_worker_by_hand_cannot_do_is_one_line(flags, said, handlers, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    deep = tmp_path / ("a" * 100)  # a path too long for a socket
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(sys, "argv", ["worker", "--models", '{"shapes": {}}', *flags])
    with pytest.raises(UserError, match=said):
        main()


def test_a_worker_by_hand_needs_a_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setattr(sys, "argv", ["worker", "--models", "{}"])
    with pytest.raises(UserError, match=f"{TOKEN} is not set"):
        main()


class Wordy(Mean):
    details = ("a" * 2**20,)


def test_details_that_are_too_long_to_send_are_refused():
    header = {"do": "score", "reward": "wordy", "prompts": ["a"], "shape": [1, 3, 32, 32]}
    answer, _ = Server({"wordy": Wordy()}).answer(header, protocol.images_to_bytes(pictures(1)))
    assert answer == {"error": "reward 'wordy' has details of more than half a megabyte"}


def test_a_stranger_on_the_line_does_not_disturb_it(listening, monkeypatch):
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x00\x00\x00\x02{}", b""):
        with socket.create_connection(("127.0.0.1", listening)) as stranger:
            stranger.sendall(noise)
    monkeypatch.setenv(TOKEN, "secret")
    worker = Worker({"shapes": {}}, address=f"127.0.0.1:{listening}")
    assert len(worker_rewards(worker)["shapes"].score(pictures(), PROMPTS)) == 4


def test_a_worker_ends_with_its_trainer():
    code = (
        "from rewards.client import Worker; import os, time\n"
        "print(Worker({'shapes': {}}).process.pid, flush=True); time.sleep(60)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    pid = int(trainer.stdout.readline())
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    raise AssertionError("the worker still runs")


def test_what_is_installed_beside_the_package_is_not_found_by_another_interpreter(
    tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("rewards", "srrl"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "neighbour.py").touch()
    monkeypatch.setattr(client, "ROOT", tmp_path)
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    names = ["rewards", "srrl", "neighbour"]
    code = f"from importlib.util import find_spec; print(*map(find_spec, {names}))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=client.worker_environment(),
        capture_output=True,
        text=True,
    ).stdout
    assert "rewards/__init__.py" in found and "srrl/__init__.py" in found
    assert "neighbour" not in found


def test_messages_are_json_and_numbers():
    one, two = map(protocol.Line, socket.socketpair())
    images = pictures(2)
    header = {"prompts": ["\u00e9\n\0", "b"], "shape": [2, 3, 32, 32]}
    one.send(header, protocol.images_to_bytes(images))
    received, payload = two.receive(protocol.images_size)
    assert received == {**header, "payload": len(payload)}
    assert torch.equal(protocol.images_from_bytes(payload, [2, 3, 32, 32]), images)
    scores = torch.tensor([1.5, float("nan"), -0.0])
    back = protocol.scores_from_bytes(protocol.scores_to_bytes(scores))
    assert torch.equal(back.nan_to_num(7), scores.nan_to_num(7))
    with pytest.raises(ValueError, match="1048576 at most"):
        one.send({"prompts": ["a" * 2**20]})
    one.close()
    with pytest.raises(ConnectionError):
        two.receive(protocol.images_size)
    two.close()


LIES = [
    b"",
    b"{",
    b"[]",
    b"7",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b"{}",
    b'{"payload": null}',
    b'{"payload": true}',
    b'{"payload": -1}',
    b'{"payload": 1e3}',
    b'{"payload": 1}',
    b'{"payload": 99999999999999999999}',
    b'{"payload": 12, "prompts": ["a"], "shape": [1, 3, 2, 2, 1]}',
    b'{"payload": 12, "prompts": ["a"], "shape": [1, 3, -2, -2]}',
    b'{"payload": 12, "prompts": ["a"], "shape": [1, 3, 2.0, 2]}',
    b'{"payload": 12, "prompts": ["a"], "shape": [2, 3, 2, 1]}',
    b'{"payload": 12, "prompts": null, "shape": [1, 3, 2, 2]}',
    b'{"payload": 99, "prompts": ["a"], "shape": [1, 3, 2, 2]}',
]


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_what_is_no_message_is_a_connection_error(lie):
    one, two = map(protocol.Line, socket.socketpair())
    one.frames.send_bytes(lie)
    one.close()
    with pytest.raises(ConnectionError):
        two.receive(protocol.images_size)
    two.close()


@contextmanager
def false_worker(answer: Callable[[protocol.Line], None]) -> Iterator[str]:
    """Three times somebody at an address who knows the token and answers a request in this way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def lying() -> None:
            for _ in range(3):
                line = protocol.Line(listener.accept()[0])
                line.prove("secret", asks=True)
                line.send({"rewards": ["shapes"]})
                line.receive(protocol.images_size)
                with suppress(OSError):
                    answer(line)
                line.close()

        thread = threading.Thread(target=lying)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setattr("rewards.client.PAUSES_S", (0, 0))


@pytest.mark.parametrize("lie", [*LIES, b"a" * (2**20 + 1), b'{"payload": 8}', b'{"payload": 0}'])
def test_an_answer_that_is_none_is_one_line(lie, impatient):
    with false_worker(lambda line: line.frames.send_bytes(lie)) as address:
        reward = worker_rewards(Worker({"shapes": {}}, address=address))["shapes"]
        with pytest.raises(UserError, match=r"reward worker 127.* failed 3 times \("):
            reward.score(pictures(1), PROMPTS[:1])


@pytest.mark.parametrize("trickles", [False, True])
def test_a_worker_that_is_silent_or_trickles_ends_with_its_reason(trickles, impatient):
    def answer(line: protocol.Line) -> None:
        if not trickles:
            line.socket.recv(1)
        line.socket.sendall(b"\0\0\1\0")  # a frame of 256 bytes, which come one by one
        for _ in range(200):
            line.socket.sendall(b" ")
            time.sleep(0.05)

    with false_worker(answer) as address:
        worker = Worker({"shapes": {}}, address=address, batch_s=0.5)
        with pytest.raises(UserError, match=r"no answer within 0.5 s \(reward.worker.batch_s\)"):
            worker_rewards(worker)["shapes"].score(pictures(1), PROMPTS[:1])


class Slow(Mean):
    def __init__(self):
        time.sleep(3600)


def test_a_worker_that_loads_for_too_long_is_one_line():
    with pytest.raises(UserError, match=r"still loading .*Slow.* 0.2 s \(reward.worker.load_s\)"):
        Worker({f"{HERE}:Slow": {}}, load_s=0.2)


def test_many_prompts_are_checked_in_parts(worker):
    rewards = worker_rewards(worker)
    rewards["shapes"].check_prompts(PROMPTS * 10_000)
    with pytest.raises(ValueError, match="a walrus"):
        rewards["shapes"].check_prompts([*PROMPTS * 10_000, "a walrus"])
    with pytest.raises(UserError, match="too much for a reward worker"):
        rewards["shapes"].score(pictures(1), ["a" * 2**20])


def test_a_worker_by_hand_listens_where_only_its_user_can_enter(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    with by_hand() as path:
        folder = Path(path).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        worker = Worker({"shapes": {}}, address=path)
        assert len(worker_rewards(worker)["shapes"].score(pictures(), PROMPTS)) == 4
    assert not folder.exists()


class Held:
    """Scores only once it is let go."""

    def __init__(self):
        self.go = threading.Event()

    def score(self, images, prompts):
        assert self.go.wait(timeout=1800)
        return images.float().mean((1, 2, 3))


def test_scoring_beside_sampling_keeps_the_order_and_the_scores():
    """In the background, batches are handed over while the first one is still being scored."""
    batches = [pictures(3, 8 + i) for i in range(4)]
    results = []
    for background in (False, True):
        reward = Held()
        scorer = Scorer({"held": reward}, background)
        if not background:
            reward.go.set()
        for i, images in enumerate(batches):
            scorer.submit(images, [str(i)] * 3)
        reward.go.set()
        results.append(scorer.collect()[0]["held"])
    assert torch.equal(*results) and len(results[0]) == 12
    scorer.submit(batches[0], ["again"] * 3)
    assert torch.equal(scorer.collect()[0]["held"], results[0][:3])


def test_an_error_in_the_background_arrives():
    scorer = Scorer({"bad": Mean()}, background=True)
    scorer.submit(pictures(1), ["fault"])
    with pytest.raises(UserError, match="a fault"):
        scorer.collect()


@pytest.mark.parametrize(
    ("flags", "device", "said"),
    [
        ([], "npu", "reward device 'npu': expected cpu, cuda"),
        (["--config.reward.device=cuda:99"], "cpu", "'cuda:99': there are [0-9]+ GPUs here"),
        (['--config.reward.options={"clipscore": {}}'], "cpu", "options of 'clipscore', which is"),
    ],
)
def test_devices_and_options_of_nothing_are_refused(flags, device, said):
    with pytest.raises(UserError, match=said):
        rewards_of(load_config([PRESET, *flags]), device)


def test_the_original_packages_need_their_environment_and_say_how_to_make_it():
    given = [PRESET, '--config.reward.models={"imagereward": 1.0}']
    config = load_config([*given, "--config.reward.backend=original"])
    with pytest.raises(UserError, match=r"scripts/original_rewards\.sh"):
        rewards_of(config, "cpu")
    config = load_config([PRESET, "--config.reward.backend=original"])
    with pytest.raises(UserError, match="unknown reward 'shapes'"):
        rewards_of(config, "cpu")
