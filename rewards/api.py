"""VQAScore's question put to a model behind an OpenAI-compatible server (vLLM, SGLang,
`transformers serve`).

The score is the probability of "Yes" as the first token of the answer to 'Does this figure show
"PROMPT"? Please answer yes or no.' (arXiv 2404.01291, section 3). Where the server gives no
log-probabilities it is 1 or 0 by the answer's text.
"""

import base64
import io
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
import torch
from torch import Tensor

from rewards.preprocess import to_pil
from srrl.errors import UserError

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
OPENAI_KEY = "OPENAI_API_KEY"
FIRST_PAUSE_S, LONGEST_PAUSE_S, SAID_S = 1.0, 60.0, 0.5


class _Again(Exception):
    """An answer, or none, that another attempt may better."""


class APIScore:
    """score(): the probability of "Yes", 0 to 1.

    url        the server's base, as "http://localhost:8000/v1"
    model      the name it serves the model under; unset: the first that it lists
    question   with {} for the prompt
    key        environment variable that holds the API key, if the server wants one
    concurrent requests at once; timeout: seconds for one; attempts: for each, with pauses of 1, 2,
               4, ... seconds between them, after which the run stops and can be resumed

    counts: requests so far, and those of them that failed. Raises UserError where the server is not
    there.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000/v1",
        model: str | None = None,
        question: str = QUESTION,
        key: str = OPENAI_KEY,
        concurrent: int = 16,
        timeout: float = 120.0,
        attempts: int = 8,
    ):
        if not url.startswith(("http://", "https://")):
            raise UserError(f"reward.options of 'api': url={url!r}: expected http://HOST:PORT/v1")
        if "{}" not in question:
            raise UserError(f"reward.options of 'api': question={question!r} has no {{}}")
        if min(concurrent, attempts) < 1 or timeout <= 0:
            raise UserError("reward.options of 'api': concurrent, attempts and timeout: above 0")
        self.url, self.question = url.rstrip("/"), question
        self.timeout, self.attempts = timeout, attempts
        if key != OPENAI_KEY and key not in os.environ:
            raise UserError(f"reward.options of 'api': key={key!r}: no such environment variable")
        secret = os.environ.get(key, "")
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.last_said = -SAID_S
        self.counts, self.counting = {"calls": 0, "failures": 0}, threading.Lock()
        self.pool = ThreadPoolExecutor(concurrent, "api")
        self.sessions = threading.local()  # one connection for each thread
        listed = self.insist("models", None, None if model else first_model)
        self.model = model or listed

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        asked = [
            self.pool.submit(self.probability, picture, prompt)
            for picture, prompt in zip(to_pil(images), prompts, strict=True)
        ]
        try:
            return torch.tensor([answer.result() for answer in asked])
        except BaseException:
            for left in asked:
                left.cancel()
            raise

    def probability(self, picture: Any, prompt: str) -> float:
        """P(yes) for one picture. Raises UserError."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": self.question.replace("{}", prompt)},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }
        return self.insist("chat/completions", body, yes_probability)

    def insist(self, path: str, body: dict | None, read: Any) -> Any:
        """read(answer) of a request that is repeated while the server fails; read is None where
        only the server has to be there."""
        pause = FIRST_PAUSE_S
        for attempt in range(self.attempts):
            try:
                with self.counting:
                    self.counts["calls"] += 1
                return self.once(path, body, read)
            except _Again as error:
                with self.counting:
                    self.counts["failures"] += 1
                if attempt + 1 == self.attempts:
                    raise UserError(
                        f"reward 'api': {self.url} failed {self.attempts} times, at last: {error}: "
                        f"look at the server and run the same command again"
                    ) from error
                self.tell(
                    f"reward 'api': attempt {attempt + 2} of {self.attempts} in {pause:.0f} s: "
                    f"{self.url}: {error}"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def tell(self, text: str) -> None:
        """Say it, but not more often than once in SAID_S: many requests may fail together."""
        if time.monotonic() - self.last_said >= SAID_S:
            self.last_said = time.monotonic()
            print(" ".join(text.split())[:300], file=sys.stderr, flush=True)

    def once(self, path: str, body: dict | None, read: Any) -> Any:
        if not hasattr(self.sessions, "session"):
            self.sessions.session = requests.Session()
        try:
            answer = self.sessions.session.request(
                "POST" if body else "GET",
                f"{self.url}/{path}",
                json=body,
                headers=self.headers,
                timeout=self.timeout,
            )
        except requests.RequestException as error:
            raise _Again(f"{type(error).__name__}: {error}") from error
        text = " ".join(answer.text.split())[:200]
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise _Again(f"status {answer.status_code}: {text}")
        if read is None:
            return None
        if answer.status_code >= 400:
            raise UserError(
                f"reward 'api': {self.url}/{path} says {answer.status_code}: {text}: see "
                f"reward.options' url, model and key"
            )
        try:
            return read(answer.json())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Again(f"an answer that cannot be read ({text!r})") from error


def first_model(answer: dict) -> str:
    return answer["data"][0]["id"]


def yes_probability(answer: dict) -> float:
    """P(yes) of a chat completion: by its first token's log-probabilities, or by its text."""
    choice = answer["choices"][0]
    first = ((choice.get("logprobs") or {}).get("content") or [None])[0]
    if first:
        logprobs = {t["token"]: t["logprob"] for t in [first, *(first.get("top_logprobs") or [])]}
        total = sum(math.exp(p) for token, p in logprobs.items() if word(token) == "yes")
        if not 0 <= total <= 1.001:
            raise ValueError(f"P(yes) = {total}")
        return min(total, 1.0)
    said = word(choice["message"]["content"])
    if said not in ("yes", "no"):
        raise ValueError(f"neither yes nor no: {said!r}")
    return float(said == "yes")


def word(text: str) -> str:
    """A token's letters, lower case: "Yes", "▁yes" and " YES." are one."""
    return "".join(c for c in text if c.isalpha()).lower()
