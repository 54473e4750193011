"""Talks to `stablemask serve` with the openai package: whole and streamed completions, several
choices, log-probabilities, lists of models, errors, and many requests at a time.
openai_client.sh runs it.

    openai_client.py PROGRAM CHECKPOINT
"""

import asyncio
import os
import subprocess
import sys
import unittest

import openai

NAME = "tiny"
arguments: list[str] = []


class Server:
    """The program, listening on a port of its choice."""

    def __init__(self, program: str, checkpoint: str) -> None:
        self.process = subprocess.Popen(
            [program, "serve", "--checkpoint", checkpoint, "--device", "cpu", "--port", "0",
             "--model-name", NAME, "--api-key-env", "SERVE_KEY", "--context", "200"],
            stdout=subprocess.PIPE, text=True,
            env=os.environ | {"SERVE_KEY": "secret", "OMP_NUM_THREADS": "1"})
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1] + "/v1"

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=30)


class OpenaiClientTest(unittest.TestCase):
    server: Server

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server(*arguments)
        cls.client = openai.OpenAI(base_url=cls.server.url, api_key="secret", max_retries=0)

    @classmethod
    def tearDownClass(cls) -> None:
        code = cls.server.stop()
        assert code == 128 + 15, f"the server ended with {code}"

    def create(self, **fields):  # type: ignore[no-untyped-def]
        return self.client.completions.create(model=NAME, prompt=" The river", **fields)

    def test_models(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], [NAME])

    def test_a_stream_is_the_whole_text(self) -> None:
        whole = self.create(max_tokens=30, seed=5)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        self.assertEqual(whole.usage.completion_tokens, 30)
        chunks = list(self.create(max_tokens=30, seed=5, stream=True,
                                  stream_options={"include_usage": True}))
        self.assertGreaterEqual(len(chunks), 2)
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        self.assertEqual(text, whole.choices[0].text)
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_choices_and_logprobs(self) -> None:
        answer = self.create(max_tokens=8, n=3, seed=1, logprobs=2, temperature=0.5, top_p=0.9,
                             stop=["\n"], extra_body={"top_k": 50})
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        for choice in answer.choices:
            logprobs = choice.logprobs
            self.assertEqual(len(logprobs.tokens), len(logprobs.token_logprobs))
            for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs,
                                           logprobs.top_logprobs):
                self.assertLess(logprob, 0)
                self.assertIn(token, top)
                self.assertLessEqual(len(top), 3)
        alone = self.create(max_tokens=8, seed=3, temperature=0.5, top_p=0.9, stop="\n",
                            extra_body={"top_k": 50})
        self.assertEqual(alone.choices[0].text, answer.choices[2].text)

    def test_errors_have_their_types(self) -> None:
        with self.assertRaises(openai.BadRequestError) as caught:
            self.create(max_tokens=0)
        self.assertEqual(caught.exception.param, "max_tokens")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.create(presence_penalty=0.5)
        self.assertEqual(caught.exception.param, "presence_penalty")
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model="other", prompt="")
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model=NAME, messages=[])

    def test_many_at_a_time(self) -> None:
        async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
            answer = await client.completions.create(model=NAME, prompt="a", seed=seed % 4,
                                                     max_tokens=5)
            return answer.choices[0].text

        async def ask_all() -> list[str]:
            async with openai.AsyncOpenAI(base_url=self.server.url, api_key="secret") as client:
                return await asyncio.gather(*(ask(client, seed) for seed in range(32)))

        texts = asyncio.run(ask_all())
        for seed in range(4, 32):
            self.assertEqual(texts[seed], texts[seed % 4])


if __name__ == "__main__":
    arguments = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1])
