"""VQAScore's question put to a Qwen-VL model: a stronger judge than CLIP-FlanT5.

The score is the probability of "Yes" as the first word of the answer to 'Does this figure show
"PROMPT"? Please answer yes or no.' (arXiv 2404.01291, section 3, with a decoder-only model).
"""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from rewards.checkpoints import checkpoint_folder
from rewards.network import NetworkReward

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"
IMAGE = "<|image_pad|>"  # stands for one visual token
FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors"]


class QwenVLScore(NetworkReward):
    """score(): the probability of "Yes", 0 to 1.

    model: hub name or folder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL; side: pictures are resized to
    so many pixels (their shorter side), which decides the number of visual tokens; settings: those
    of NetworkReward.
    """

    name, batch_size = "qwenvl", 8

    def __init__(
        self, model: str = "Qwen/Qwen2.5-VL-7B-Instruct", side: int = 448, **settings: Any
    ):
        super().__init__(**settings)
        self.side = side
        (folder,) = self.folders(model)
        with self.loading(model):
            network = AutoModelForImageTextToText.from_pretrained(folder, torch_dtype=self.dtype)
            self.images = AutoImageProcessor.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.use(network)
        first = self.tokenizer(ANSWER, add_special_tokens=False).input_ids
        self.yes = first[0]

    @classmethod
    def folders(cls, model: str) -> tuple[Path]:
        """Of the checkpoint."""
        return (checkpoint_folder(cls.name, model, FILES),)

    def text(self, prompt: str, visual_tokens: int) -> str:
        """The conversation up to the answer, with room for the picture's tokens."""
        content = [{"type": "image"}, {"type": "text", "text": QUESTION.replace("{}", prompt)}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = text.partition(IMAGE)
        return before + IMAGE * visual_tokens + after

    def batch(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        vision = self.images(images=[self._resized(p) for p in pictures], return_tensors="pt")
        merged = self.network.config.vision_config.spatial_merge_size**2
        counts = (vision.image_grid_thw.prod(-1) // merged).tolist()
        texts = [self.text(p, n) for p, n in zip(prompts, counts, strict=True)]
        words = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        logits = self.network(
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            mm_token_type_ids=(words.input_ids == self.network.config.image_token_id).int(),
            pixel_values=vision.pixel_values.to(self.device, self.network.dtype),
            image_grid_thw=vision.image_grid_thw.to(self.device),
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float().softmax(-1)[:, self.yes]

    def _resized(self, picture: Image.Image) -> Image.Image:
        scale = self.side / min(picture.size)
        longest = 4 * self.side  # a line of one pixel would become endless
        return picture.resize([min(longest, max(1, round(scale * s))) for s in picture.size])
