"""The VLM as a policy over tokens: the tiny one and the real classes, small, really loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from srrl.errors import UserError
from srrl.models import random_vlm
from srrl.models.language_lora import ADAPTER_FILE
from srrl.models.vlm import VLM
from srrl.shapes.scenes import SIZE, all_scenes, render
from srrl.shapes.vlm import ENDS, SPECIAL, TEMPLATE, build_vlm

SCENES = all_scenes()[::50]
PICTURES = (render(SCENES, torch.Generator().manual_seed(0)) * 255).round().to(torch.uint8)
QUESTIONS = [
    ["is there a red circle?", "what is blue?"],
    ["a"],
    [],
    ["is there a green square?"] * 3,
]
ASK = "describe the picture."


def vision(**changes) -> dict:
    return {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, **changes}


def text(vocabulary: int, **changes) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
            "partial_rotary_factor": 1.0,
        },
        **changes,
    }


def merging_tokenizer() -> Qwen3_5Tokenizer:
    """Bytes, and the words yes and no by merges."""
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    pieces = [*bytes_to_unicode().values(), *(a + b for a, b in merges)]
    tokenizer = Qwen3_5Tokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        eos_token=ENDS[0],
        pad_token=ENDS[1],
        chat_template=TEMPLATE,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL.split()})
    return tokenizer


def network(kind: str):
    """(network, tokenizer, image processor) of a real class, small, with random weights."""
    made, tokenizer, pictures = build_vlm(0)
    if kind == "qwen3_5":  # whose tokenizer is always made anew from words and merges
        tokenizer = merging_tokenizer()
    named = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {
        f"{name.removesuffix('_pad')}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in named
    }
    n, four = len(tokenizer), {"patch_size": 4, "spatial_merge_size": 2, "out_hidden_size": 32}
    torch.manual_seed(1)
    if kind == "qwen2":
        eyes = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
        words = text(
            n,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        )
        made = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=words, vision_config=eyes, **ids)
        )
    if kind == "qwen3":
        eyes = vision(deepstack_visual_indexes=[0], num_position_embeddings=64, **four)
        made = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text(n), vision_config=eyes, **ids)
        )
    if kind == "qwen3_5":
        words = text(
            n,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
        eyes = vision(num_position_embeddings=64, **four)
        made = Qwen3_5ForConditionalGeneration(
            Qwen3_5Config(text_config=words, vision_config=eyes, **ids)
        )
    return made, tokenizer, pictures


@pytest.fixture(scope="module", params=["qwen2", "qwen2_5", "qwen3", "qwen3_5"])
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    for part in network(request.param):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def vlm(saved) -> VLM:
    return VLM.load(saved, batch_size=3)


def generators(n: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def test_packed_questions_are_the_same_as_separate_ones(vlm, saved):
    together = vlm.p_yes(PICTURES[:4], QUESTIONS)
    assert [len(p) for p in together] == [2, 1, 0, 3]
    for i, some in enumerate(QUESTIONS):
        for k, question in enumerate(some):
            (alone,) = vlm.p_yes(PICTURES[i : i + 1], [[question]])
            torch.testing.assert_close(alone[0], together[i][k], atol=1e-5, rtol=0)
    torch.testing.assert_close(together[3], together[3][:1].expand(3), atol=1e-5, rtol=0)
    assert vlm.packs == ("qwen3_5" not in saved.name)
    assert all(0 <= x <= 1 for p in together for x in p.tolist())
    assert (
        together[0][0] != vlm.p_yes(PICTURES[5:6], QUESTIONS[:1])[0][0]
    )  # it looks at the picture


def test_given_at_once_log_probs_are_those_of_writing(vlm):
    requests = [ASK, "is there a red circle?", "what is blue?", "a b c d e f g"]
    written = vlm.write(PICTURES[:4], requests, max_tokens=9, generators=generators(4))
    assert written.mask.sum(1).min() >= 1 and len(written) == 4
    given = vlm.log_probs(PICTURES[:4], requests, written.tokens, written.mask)
    torch.testing.assert_close(given, written.log_probs, atol=1e-4, rtol=0)
    assert (given[written.mask] < 0).all() and (given[~written.mask] == 0).all()


def test_a_completion_does_not_depend_on_its_company(vlm):
    requests = [ASK, "is there a red circle on the right of a blue square?", "a"]
    together = vlm.write(PICTURES[:3], requests, max_tokens=6, generators=generators(3))
    for i, request in enumerate(requests):
        alone = vlm.write(
            PICTURES[i : i + 1], [request], max_tokens=6, generators=generators(1, first=i)
        )
        assert alone.texts[0] == together.texts[i]
    other = vlm.write(PICTURES[:3], requests, max_tokens=6, generators=generators(3, first=9))
    assert other.texts != together.texts
    likeliest = [vlm.write(PICTURES[:3], requests, max_tokens=6).texts for _ in range(2)]
    assert likeliest[0] == likeliest[1]


@pytest.mark.slow
def test_tokens_are_drawn_as_often_as_their_probability(vlm):
    n = 400
    one = PICTURES[:1].expand(n, -1, -1, -1)
    drawn = vlm.write(one, [ASK] * n, max_tokens=1, generators=generators(n), temperature=0.7)
    vocabulary = set(range(vlm.network.config.get_text_config().vocab_size))
    every = torch.tensor(sorted(vocabulary - set(vlm.unwritten.tolist())))[:, None]
    ones = torch.ones_like(every, dtype=torch.bool)
    p = vlm.log_probs(
        PICTURES[:1].expand(len(every), -1, -1, -1), [ASK] * len(every), every, ones, 0.7
    )
    assert p.exp().sum().item() == pytest.approx(1, abs=1e-4)
    mean = drawn.log_probs.mean().item()  # its expectation is the negative entropy
    entropy, spread = -(p.exp() * p).sum(), (p.exp() * p**2).sum() - (p.exp() * p).sum() ** 2
    assert abs(mean + entropy) < 4 * (spread / n).sqrt() + 1e-3


def test_one_update_moves_the_lora_alone_and_comes_back_from_its_folder(vlm, saved, tmp_path):
    vlm.add_lora(rank=2, alpha=4, seed=0)
    before = {n: p.clone() for n, p in vlm.network.named_parameters()}
    written = vlm.write(PICTURES[:2], [ASK] * 2, max_tokens=5, generators=generators(2))
    log_p = vlm.log_probs(PICTURES[:2], [ASK] * 2, written.tokens, written.mask)
    torch.testing.assert_close(log_p.detach(), written.log_probs, atol=1e-4, rtol=0)
    optimizer = torch.optim.SGD(vlm.trainable(), lr=0.01)
    (-log_p.sum()).backward()
    optimizer.step()
    moved = {n for n, p in vlm.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_B" in n and "language_model" in n for n in moved)
    after = vlm.log_probs(PICTURES[:2], [ASK] * 2, written.tokens, written.mask)
    assert after.sum() > log_p.sum()  # likelier now
    vlm.save_weights(tmp_path, vlm.weights())
    again = VLM.load(saved)
    again.add_lora(rank=2, alpha=4, seed=5)
    again.load_weights(tmp_path)
    same = again.log_probs(PICTURES[:2], [ASK] * 2, written.tokens, written.mask)
    assert torch.equal(same, after)
    other = VLM.load(saved)
    other.add_lora(rank=3, alpha=4, seed=5)
    with pytest.raises(UserError, match=r"LoRA in .* does not fit|cannot read"):
        other.load_weights(tmp_path)


def test_a_lora_that_is_not_whole_or_not_of_this_model_is_refused(vlm, saved, tmp_path):
    with pytest.raises(UserError, match=r"LoRA in .* does not fit \("):
        vlm.put_lora(tmp_path)
    vlm.add_lora(rank=2, alpha=4, seed=0)
    vlm.save_weights(tmp_path, vlm.weights())
    state = load_file(tmp_path / ADAPTER_FILE)
    del state[min(state)]
    save_file(state, tmp_path / ADAPTER_FILE)
    with pytest.raises(UserError, match="does not fit this model and rank"):
        vlm.load_weights(tmp_path)
    with pytest.raises(UserError, match=r"does not fit this model, as at .*lora_A"):
        VLM.load(saved).put_lora(tmp_path)


def test_what_is_wrong_with_pictures_and_texts_is_an_error(vlm, saved, tmp_path):
    with pytest.raises(ValueError, match="2 pictures for 1 lists"):
        vlm.p_yes(PICTURES[:2], [["a"]])
    with pytest.raises(ValueError, match="1 pictures for 2 requests"):
        vlm.write(PICTURES[:1], ["a", "b"], max_tokens=2)
    with pytest.raises(ValueError, match=r"image_pad.*which is the conversation's own"):
        vlm.p_yes(PICTURES[:1], [["is there a <|image_pad|>?"]])
    with pytest.raises(UserError, match="no single token for is it or is it not"):
        vlm.talk.single_tokens(["is it", "is it not"])
    with pytest.raises(ValueError, match="temperature 0"):
        vlm.write(PICTURES[:1], ["a"], max_tokens=2, generators=generators(1), temperature=0)
    seen = vlm.look(PICTURES[:2])
    for count in (15, 17):  # of 16 tokens a picture
        ids, mask = vlm.talk.padded(vlm.talk.rows(["a", "b"], count))
        with pytest.raises((ValueError, RuntimeError, IndexError, StopIteration)):
            vlm.logits(ids, mask, vlm.positions(ids, mask, seen), seen)
    vlm.talk.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(ValueError, match="leaves the picture out"):
        vlm.p_yes(PICTURES[:1], [["something new"]])


def test_a_model_that_thinks_aloud_is_asked_not_to(saved):
    vlm = VLM.load(saved)
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    vlm.talk.tokenizer.chat_template = TEMPLATE + thinking
    before, after = vlm.talk.around("is there a red circle?")
    assert "think" not in vlm.talk.tokenizer.decode([*before, *after])


def test_positions_are_never_left_to_be_guessed(vlm):
    """Without the kinds of tokens transformers numbers a picture's tokens as text, in silence."""
    seen = vlm.look(PICTURES[:1])
    ids, mask = vlm.given([ASK], seen)
    right = vlm.logits(ids, mask, vlm.positions(ids, mask, seen), seen)
    flat = torch.arange(ids.shape[1]).expand(3, 1, -1)
    assert (vlm.logits(ids, mask, flat, seen) - right).abs().max() > 1e-4
    made = vlm.network.generate  # generation gives the kinds, and finds the positions itself
    given = {}
    vlm.network.generate = lambda **k: given.update(k) or made(**k)
    vlm.write(PICTURES[:1], [ASK], max_tokens=1)
    assert (given["mm_token_type_ids"] == (given["input_ids"] == vlm.talk.image).int()).all()


def test_pictures_may_be_scaled_and_counted(saved):
    vlm = VLM.load(saved, side=2 * SIZE)
    vlm.pictures.size = {"shortest_edge": 1, "longest_edge": 10**6}
    assert vlm.visual_tokens(vlm.look(PICTURES[:1])) == 64
    (p,) = vlm.p_yes(PICTURES[:1], [["a", "b"]])
    assert len(p) == 2 and vlm.nfe >= 1 and vlm.tokens > 64


def test_what_is_no_qwen_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot load the VLM"):
        VLM.load(tmp_path / "nothing")
    for part in network("qwen2_5")[1:]:
        part.save_pretrained(tmp_path)
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot load the VLM"):
        VLM.load(tmp_path)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 1}
    eyes, words = CLIPVisionConfig(**size, image_size=8, patch_size=4), LlamaConfig(**size)
    config = LlavaConfig(vision_config=eyes, text_config=words)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a LlavaForConditionalGeneration: only Qwen's"):
        VLM.load(tmp_path)


def test_a_random_vlm_of_a_published_architecture_looks_writes_and_trains(monkeypatch):
    """The same code at a size that fits a test."""
    monkeypatch.setitem(random_vlm.LANGUAGE, "Qwen2.5-VL-7B", (128, 64, 2, 1, 1, 512, False))
    small = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    monkeypatch.setattr(random_vlm, "VISION", {**random_vlm.VISION, **small})
    vlm, again = (VLM.load("random:Qwen2.5-VL-7B", batch_size=2) for _ in range(2))
    for one, other in zip(vlm.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    images = torch.randint(0, 256, (3, 3, 56, 84), dtype=torch.uint8)
    assert vlm.visual_tokens(vlm.look(images)) == 2 * 3
    assert all(0 < p < 1 for p in torch.cat(vlm.p_yes(images, [["Is there a cat?"]] * 3)).tolist())
    requests = ["What is missing?"] * 3
    vlm.add_lora(rank=2, alpha=2, seed=0)
    written = vlm.write(images, requests, max_tokens=4)
    again = vlm.log_probs(images, requests, written.tokens, written.mask)
    assert torch.allclose(again, written.log_probs, atol=1e-4)
    again.sum().backward()
    assert any(p.grad.abs().max() > 0 for p in vlm.trainable())


def test_a_random_vlm_of_no_known_architecture_is_refused():
    with pytest.raises(UserError, match=r"random:Qwen9.*random:Qwen2\.5-VL-7B"):
        VLM.load("random:Qwen9")
