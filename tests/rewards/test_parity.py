"""Our inference against the original packages' own code, live, on identical random weights.

They run in the environment of scripts/original_rewards.sh: of .venv-rewards in the repository, or
of the interpreter in SRRL_ORIGINALS.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from rewards import load_rewards
from rewards.files import read_picture
from rewards.preprocess import centre_crop, padded_square
from srrl.config import REPOSITORY
from tests.conftest import PRESET, small_run
from tests.rewards.tiny import (
    IMAGEREWARD,
    TINY_IMAGEREWARD,
    bert_vocabulary,
    imagereward_shapes,
    random_state,
    save_vqascore,
)
from tests.slow.commands import logged, run

PYTHON = Path(os.environ.get("SRRL_ORIGINALS", REPOSITORY / ".venv-rewards" / "bin" / "python"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason=f"no {PYTHON}: make it by bash scripts/original_rewards.sh .venv-rewards",
    ),
]
PROMPTS = [
    "a red circle above a blue square",
    "x",
    " ".join(["word"] * 500),
    "红色的圆",
    'a "quoted" {brace}',
]
SIZES = [(33, 40), (40, 33), (64, 64), (300, 7), (1, 1)]


def pictures(folder: Path) -> list[str]:
    files = []
    for i, size in enumerate(SIZES):
        generator = torch.Generator().manual_seed(i)
        noise = torch.randint(0, 256, (*size, 3), generator=generator).to(torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
        files.append(str(folder / f"{i}.png"))
    return files


def opened(file: str) -> torch.Tensor:
    """uint8 [1, 3, H, W]"""
    return read_picture(Path(file))[0][None]


def original(name: str, job: dict, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "job.json").write_text(json.dumps(job))
    run(
        PYTHON,
        "tests/rewards/reference.py",
        name,
        folder / "job.json",
        folder / "out.pt",
        PYTHONPATH=str(REPOSITORY),
        CUDA_VISIBLE_DEVICES="",
    )
    return torch.load(folder / "out.pt", weights_only=True)


def imagereward_folder(folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """The options of a random ImageReward, with all files that the original reads."""
    folder.mkdir(exist_ok=True)
    torch.save(random_state(imagereward_shapes(sizes)), folder / "ImageReward.pt")
    med = {
        "vocab_size": sizes["words"],
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["hidden"] // 64,
        "intermediate_size": sizes["inner"],
        "max_position_embeddings": sizes["positions"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "add_type_embeddings": False,
        "model_type": "bert",
        "encoder_width": sizes["hidden"],
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(med))
    return {"model": str(folder), "tokenizer": str(bert_vocabulary(folder / "bert"))}


@pytest.mark.parametrize("size", ["reduced", "full"])
def test_imagereward_equals_the_original(size, tmp_path):
    sizes = {"reduced": TINY_IMAGEREWARD, "full": IMAGEREWARD}[size]
    options = imagereward_folder(tmp_path, sizes)
    files = pictures(tmp_path)
    job = {**options, "images": files, "prompts": PROMPTS}
    theirs = original("imagereward", job, tmp_path)

    ours = load_rewards(["imagereward"], {"imagereward": options})["imagereward"]
    assert torch.equal(ours.tokens(PROMPTS)[0], theirs["tokens"])
    pixels = [centre_crop(Image.open(f).convert("RGB"), sizes["size"]) for f in files]
    assert torch.equal(torch.stack(pixels), theirs["pixels"])
    scores = torch.cat([ours.score(opened(f), [p]) for f, p in zip(files, PROMPTS, strict=True)])
    difference = (scores.double() - theirs["scores"]).abs().max()
    print(f"imagereward, {size} size: largest difference {difference:.1e}")
    assert difference < 1e-5
    assert scores.std() > 1e-3


def t5_words(folder: Path) -> Path:
    """A sentencepiece model as T5's, trained on a few sentences."""
    folder.mkdir()
    sentences = [
        *PROMPTS,
        "Does this figure show a red circle? Please answer yes or no.",
        "A chat between a curious user and an artificial intelligence assistant.",
        "The assistant gives helpful, detailed, and polite answers.",
        "Yes",
        "No",
        "USER: ASSISTANT:",
    ]
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 20),
            model_writer=file,
            vocab_size=200,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def vqascore_folder(folder: Path) -> dict[str, str]:
    """The options of a tiny CLIP-FlanT5, with all files that the original reads."""
    options = save_vqascore(folder) | {"tokenizer": str(t5_words(folder / "t5"))}
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(settings))
    size = {"height": 28, "width": 28}
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    images.save_pretrained(folder / "clip")
    return options


def test_vqascore_equals_the_original(tmp_path):
    options = vqascore_folder(tmp_path / "model")
    files, prompts = pictures(tmp_path)[:-1], PROMPTS[:-1]  # one pixel: the original fails on it
    job = {**options, "images": files, "prompts": prompts}
    theirs = original("vqascore", job, tmp_path)

    ours = load_rewards(["vqascore"], {"vqascore": options})["vqascore"]
    from rewards.vqascore import AFTER

    after = ours.ids(AFTER.replace("{}", PROMPTS[0]))
    tokens = torch.cat([ours.before, torch.tensor([-200]), after])
    assert torch.equal(tokens, theirs["tokens"])
    pixels = torch.stack([padded_square(Image.open(f).convert("RGB"), 28) for f in files])
    torch.testing.assert_close(pixels, theirs["pixels"], atol=1e-6, rtol=0)
    scores = torch.cat([ours.score(opened(f), [p]) for f, p in zip(files, prompts, strict=True)])
    difference = (scores.double() - theirs["scores"]).abs().max()
    print(f"vqascore: largest difference {difference:.1e}, scores {scores.tolist()}")
    assert difference < 1e-5


def test_training_on_the_original_packages_behind_a_worker_equals_training_on_ours(tmp_path):
    options = {
        "imagereward": imagereward_folder(tmp_path / "reward", TINY_IMAGEREWARD),
        "vqascore": vqascore_folder(tmp_path / "vqa"),
    }
    folders = {"local": [], "original": [f"--config.reward.worker.python={PYTHON}"]}
    for backend, extra in folders.items():
        run(
            sys.executable,
            "scripts/train.py",
            PRESET,
            *small_run(tmp_path / backend, 2),
            f"--config.reward.models={json.dumps(dict.fromkeys(options, 1.0))}",
            f"--config.reward.options={json.dumps(options)}",
            f"--config.reward.backend={backend}",
            *extra,
        )
    ours, theirs = (logged(tmp_path / backend / "run", "metrics.jsonl") for backend in folders)
    for one, other in zip(ours, theirs, strict=True):
        for name in options:
            for key in (f"reward/{name}/mean", f"reward/{name}/std"):
                assert one[key] == pytest.approx(other[key], abs=1e-4), (key, one["stage"])
        assert one["selected"] == other["selected"]
