"""VQAScore, ImageReward and CLIPScore on tiny checkpoints, loaded by the real loading code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, T5Config

from rewards import load_rewards, score_all
from rewards.checkpoints import fill
from rewards.imagereward import MEAN, STD, Sizes, blank_network, renamed
from rewards.preprocess import CLIP_MEAN, CLIP_STD, centre_crop, padded_square
from rewards.vqascore import CLIP, FLAN_T5, SYSTEM, Network
from rewards.vqascore import renamed as vqa_renamed
from srrl.errors import UserError
from tests.rewards.tiny import (
    IMAGEREWARD,
    SAVE,
    imagereward_shapes,
    save_imagereward,
    save_qwenvl,
    save_vqascore,
    tiny_options,
    vqa_configs,
    vqa_state,
)

PROMPTS = [
    "a red circle above a blue square",
    "x",
    "",
    " ".join(["word"] * 500),
    "红色的圆在蓝色方块上",
    'a "quoted" {brace} and \\ {}',
    "line\nbreak",
]


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    options = tiny_options(tmp_path_factory.mktemp("tiny"), *SAVE)
    return load_rewards(options, options)


def pictures(n: int, height: int = 40, width: int = 33, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator).to(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVE)
def test_any_prompt_and_any_size_is_scored_alike_alone_or_in_a_batch(rewards, name):
    reward = {name: rewards[name]}
    images = pictures(len(PROMPTS))
    together = score_all(reward, images, PROMPTS)[name]
    alone = [score_all(reward, images[i : i + 1], PROMPTS[i : i + 1])[name] for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-4)
    assert len(set(together.tolist())) == len(PROMPTS)
    for size in ((1, 1), (1, 9), (300, 7), (28, 28)):
        assert torch.isfinite(score_all(reward, pictures(1, *size), ["a dog"])[name]).all()
    rewards[name].batch_size, before = 3, rewards[name].batch_size
    parts = score_all(reward, images, PROMPTS)[name]
    rewards[name].batch_size = before
    torch.testing.assert_close(together, parts, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVE)
def test_m_images_and_prompts_cost_m_scores(rewards, name, monkeypatch):
    seen = []
    network = rewards[name].network
    forward = network.forward

    def counted(*arguments, **keywords):
        given = keywords.get("image_grid_thw", keywords.get("pixel_values"))
        seen.append(len(arguments[0] if given is None else given))
        return forward(*arguments, **keywords)

    monkeypatch.setattr(network, "forward", counted)
    rewards[name].score(pictures(7), PROMPTS)
    assert sum(seen) == 7


def test_vqascore_equals_the_definition_written_out(rewards):
    """exp(mean log p) of "Yes" and `</s>`, one question at a time, embeddings by hand."""
    reward = rewards["vqascore"]
    net, words = reward.network, reward.tokenizer
    end = words.eos_token_id
    images = pictures(3)
    for prompt, image in zip(PROMPTS[:3], images, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        square = Image.new("RGB", (40, 40), tuple(int(255 * x) for x in CLIP_MEAN))
        square.paste(picture, ((40 - 33) // 2, 0))
        pixels = np.asarray(square.resize((28, 28), Image.BICUBIC), np.float32) / 255
        pixels = (pixels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
        pixels = torch.from_numpy(pixels.transpose(2, 0, 1))[None]
        assert torch.equal(pixels[0], padded_square(picture, 28))
        hidden = net.vision(pixels, output_hidden_states=True).hidden_states
        assert len(hidden) == 4
        tokens = net.mm_projector[2](
            torch.nn.functional.gelu(net.mm_projector[0](hidden[2][0, 1:]))
        )
        before = words(f"{SYSTEM} USER: ").input_ids
        question = f'\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT: '
        after = words(question).input_ids
        assert before[-1] == end and after[-1] == end
        embed = net.t5.shared.weight
        inputs = torch.cat([embed[torch.tensor(before)], tokens, embed[torch.tensor(after)]])
        encoded = net.t5.encoder(inputs_embeds=inputs[None]).last_hidden_state
        answer = words("Yes").input_ids
        assert len(answer) >= 2 and answer[-1] == end
        start = torch.tensor([[0, *answer[:-1]]])
        decoded = net.t5.decoder(input_ids=start, encoder_hidden_states=encoded)
        logits = decoded.last_hidden_state[0] @ net.t5.lm_head.weight.T[:, : len(words)]
        assert len(words) < len(net.t5.lm_head.weight)
        log_p = logits.log_softmax(-1)
        expected = torch.stack([log_p[i, token] for i, token in enumerate(answer)]).mean().exp()
        ours = reward.score(image[None], [prompt])[0]
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_qwenvl_is_the_probability_of_yes_after_the_conversation(rewards):
    """One by one, without padding, the picture's tokens counted by hand."""
    reward = rewards["qwenvl"]
    words, images = reward.tokenizer, pictures(2)
    assert words.decode([reward.yes]) == "Yes"
    for prompt, image in zip(PROMPTS[:2], images, strict=True):
        vision = reward.images(
            images=[Image.fromarray(image.permute(1, 2, 0).numpy()).resize((56, 68))],
            return_tensors="pt",
        )
        count = int(vision.image_grid_thw.prod()) // 4
        text = (
            "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
            f'Does this figure show "{prompt}"? Please answer yes or no.<|im_end|>\n'
            "<|im_start|>assistant\n"
        )
        ids = words(text, return_tensors="pt").input_ids
        pad = words.convert_tokens_to_ids("<|image_pad|>")
        logits = reward.network(
            input_ids=ids, mm_token_type_ids=(ids == pad).int(), **vision
        ).logits
        expected = logits[0, -1].softmax(-1)[reward.yes]
        ours = reward.score(image[None], [prompt])[0]
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_vqascores_output_layer_is_its_own_and_the_input_embeddings_are_shared(rewards):
    t5 = rewards["vqascore"].network.t5
    assert not torch.equal(t5.lm_head.weight, t5.shared.weight)
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert t5.decoder.embed_tokens.weight is t5.shared.weight


def test_imagereward_standardises_by_the_published_mean_and_std(rewards):
    reward = rewards["imagereward"]
    net, images = reward.network, pictures(2)
    ids, mask = reward.tokens(PROMPTS[:2])
    assert ids.shape == (2, 35) and ids[0, 0] == reward.tokenizer.cls_token_id
    pixels = torch.stack(
        [centre_crop(Image.fromarray(i.permute(1, 2, 0).numpy()), 64) for i in images]
    )
    features = net.text(
        ids,
        attention_mask=mask,
        encoder_hidden_states=net.vision(pixels).last_hidden_state,
        is_decoder=False,
    ).last_hidden_state[:, 0]
    for place in ("0", "2", "4", "6", "7"):
        features = features @ net.mlp[place].weight.T + net.mlp[place].bias
    raw = features[:, 0]
    assert (MEAN, STD) == (0.16717362830052426, 1.0333394966054072)
    torch.testing.assert_close(reward.score(images, PROMPTS[:2]), (raw - MEAN) / STD)


def test_pixels_of_grey_and_long_pictures():
    for size in ((1, 1), (3, 200), (200, 3), (224, 224)):
        grey = Image.new("RGB", size, (128, 128, 128))
        for prepared in (centre_crop(grey, 32), padded_square(grey, 32)):
            assert prepared.shape == (3, 32, 32) and torch.isfinite(prepared).all()
        flat = (torch.tensor([128 / 255] * 3) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        torch.testing.assert_close(centre_crop(grey, 32), flat.view(3, 1, 1).expand(3, 32, 32))


def test_the_published_imagerewards_names_and_shapes_all_find_their_place():
    shapes = dict(imagereward_shapes(IMAGEREWARD))
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    network = blank_network(Sizes.of(state))
    assert Sizes.of(state) == Sizes()
    assert network.image_size == 224
    numbers = {k: t.numel() for k, t in state.items() if not k.endswith("position_ids")}
    assert round(sum(numbers.values()) / 1e6, 1) == 446.7
    fill("imagereward", network, renamed(state), torch.float32)
    with pytest.raises(UserError, match=r"missing \['text\.encoder"):
        less = {k: v for k, v in state.items() if "layer.3" not in k}
        fill("imagereward", network, renamed(less), torch.float32)


@pytest.mark.parametrize("size", ["xl", "xxl"])
def test_the_published_clip_flant5s_names_and_shapes_all_find_their_place(size):
    """FLAN-T5's published sizes and CLIP ViT-L/14-336, on the meta device."""
    t5, vision = T5Config(**FLAN_T5[size]), CLIPVisionConfig(**CLIP)
    with torch.device("meta"):
        network = Network(t5, vision, -2)
        state = {name: torch.empty(shape) for name, shape in published(t5, vision)}
    fill("vqascore", network, vqa_renamed(state, set(network.state_dict())), torch.float32)
    count = sum(p.numel() for p in network.t5.parameters())
    network.tie()
    count = sum(p.numel() for p in network.t5.parameters())
    assert round(count / 1e9, 2) == {"xl": 2.85, "xxl": 11.14}[size]


def published(t5, vision):
    """Names and shapes of a CLIP-FlanT5's file, in the meta device's cheap way."""
    from transformers import CLIPVisionModel, T5ForConditionalGeneration

    language, tower = T5ForConditionalGeneration(t5), CLIPVisionModel(vision)
    for name, tensor in language.state_dict().items():
        yield name, tensor.shape
    yield "embed_tokens.weight", language.shared.weight.shape
    for name, tensor in tower.state_dict().items():
        name = "vision_model." + name.removeprefix("vision_model.")
        yield "vision_tower.vision_tower." + name, tensor.shape
    for place, inputs in (("0", vision.hidden_size), ("2", t5.d_model)):
        yield f"mm_projector.{place}.weight", (t5.d_model, inputs)
        yield f"mm_projector.{place}.bias", (t5.d_model,)


def test_safetensors_and_a_tower_that_the_checkpoint_lacks(tmp_path):
    options = save_vqascore(tmp_path / "bin")
    reward = load_rewards(["vqascore"], {"vqascore": options})["vqascore"]
    expected = reward.score(pictures(2), PROMPTS[:2])

    state = vqa_state(*vqa_configs())
    tower = {k: v for k, v in state.items() if k.startswith("vision_tower")}
    other = save_vqascore(tmp_path / "safe")
    folder = tmp_path / "safe"
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    save_file(
        {k: v.contiguous() for k, v in state.items() if k not in tower},
        folder / "model.safetensors",
    )
    save_file(
        {k.removeprefix("vision_tower.vision_tower."): v for k, v in tower.items()},
        folder / "clip" / "model.safetensors",
    )
    again = load_rewards(["vqascore"], {"vqascore": other})["vqascore"]
    assert torch.equal(again.score(pictures(2), PROMPTS[:2]), expected)


def test_bad_checkpoints_are_one_clear_line(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    options = save_imagereward(tmp_path / "a")
    torch.save({"x": Evil()}, tmp_path / "a" / "ImageReward.pt")
    with pytest.raises(UserError, match="cannot read"):
        load_rewards(["imagereward"], {"imagereward": options})
    with pytest.raises(UserError, match="hf download nobody/nothing"):
        load_rewards(["vqascore"], {"vqascore": {"model": "nobody/nothing"}})
    with pytest.raises(UserError, match="unexpected keyword"):
        load_rewards(["vqascore"], {"vqascore": {"modle": "x"}})
    options = save_vqascore(tmp_path / "b")
    index = tmp_path / "b" / "pytorch_model.bin.index.json"
    names = json.loads(index.read_text())["weight_map"]
    one = sorted(set(names.values()))[0]
    index.write_text(json.dumps({"weight_map": {k: v for k, v in names.items() if v == one}}))
    with pytest.raises(UserError, match="does not fit the model: missing"):
        load_rewards(["vqascore"], {"vqascore": options})
    index.unlink()
    with pytest.raises(UserError, match=r"holds none of model\.safetensors\.index\.json"):
        load_rewards(["vqascore"], {"vqascore": options})
    options = save_qwenvl(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"'qwenvl': cannot load .*config\.json"):
        load_rewards(["qwenvl"], {"qwenvl": options})


def test_images_of_another_kind_are_refused(rewards):
    with pytest.raises(ValueError, match="uint8"):
        rewards["vqascore"].score(torch.zeros(1, 3, 8, 8), ["x"])
