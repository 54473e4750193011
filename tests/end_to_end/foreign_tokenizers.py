"""A tokenizer.json and a model that uses it: ids, texts, likelihoods and files equal those of
transformers. foreign_tokenizers.sh runs it.

    foreign_tokenizers.py PROGRAM TEXT ENCODER

The tokenizer is byte-level and trained on TEXT, the model small and random.
"""

import io
import json
import os
import runpy
import struct
import subprocess
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

TEMPORARY = tempfile.TemporaryDirectory()
WORK = Path(TEMPORARY.name)
os.environ |= {"HF_HOME": str(WORK / "hf"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
               "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import (Tokenizer, decoders, models, pre_tokenizers, processors,  # noqa: E402
                        trainers)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PROGRAM, TEXT, ENCODER = (Path(argument).resolve() for argument in sys.argv[1:4])
FOLDER = WORK / "original"
CONTEXT, NEW_TOKENS = 32, 24
START, END, ASK, ANSWER = "<|begin|>", "<|end|>", "<|ask|>", "<|answer|>"
CHAT_TEMPLATE = ("{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
                 "<|ask|>{{ message.content }}{% else %}<|answer|>{{ message.content }}<|end|>"
                 "{% endif %}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}")
TEXTS = ["The river", " two  spaces and\ttabs\n\nlines \r\n", "café ﬁ 河 🌊 \x00\x7f", "",
         "a tool <tool call> and <|end|> within", "Ġ Ċ ¡ <0x41>"]


def run(*arguments: str | Path, given: str = "", code: int = 0) -> str:
    """Standard output; of a failure that is expected, the message."""
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, input=given)
    if result.returncode != code:
        raise AssertionError(f"stablemask {arguments[0]}: {result.returncode}: {result.stderr}")
    return result.stderr if code else result.stdout


def encoded(*arguments: str, given: str = "", code: int = 0) -> str:
    """What ENCODER prints for an input, in this process: it takes seconds to start. Of a failure that
    is expected, the message."""
    file = WORK / "input"
    file.write_text(given)
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        status = runpy.run_path(str(ENCODER))["main"](
            ["--tokenizer", str(FOLDER), "--input", str(file), *arguments])
    if status != code:
        raise AssertionError(f"encode.sh: {status}: {errors.getvalue()}")
    return errors.getvalue() if code else output.getvalue()


def shard_ids(path: Path) -> list[int]:
    """docs/formats.md: a header of 256 bytes, then ids of 16 bits."""
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data, 32)[0]
    return list(struct.unpack_from(f"<{count}H", data, 256))


def make_tokenizer() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([str(TEXT)], trainers.BpeTrainer(
        vocab_size=400, special_tokens=[START, END, ASK, ANSWER], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens(["<tool call>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END,
        chat_template=CHAT_TEMPLATE).save_pretrained(FOLDER)


def make_model(vocabulary: int) -> None:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(FOLDER)


class ForeignTokenizers(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        make_tokenizer()
        cls.tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
        make_model(len(cls.tokenizer))
        cls.model = transformers.LlamaForCausalLM.from_pretrained(FOLDER).eval()
        cls.checkpoint, cls.shard = WORK / "checkpoint", WORK / "shard"
        cls.lines = encoded(given=TEXT.read_text())
        run("import", "--from", FOLDER, "--out", cls.checkpoint)
        run("data", "prepare", "--ids", "-", "--tokenizer", FOLDER / "tokenizer.json", "--output",
            cls.shard, given=cls.lines)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def test_decoded_texts_equal_those_of_the_library(self) -> None:
        ids = [self.ids(text) for text in TEXTS]
        lines = "".join(" ".join(map(str, row)) + "\n" for row in ids)
        decoded = subprocess.run(
            [PROGRAM, "tokenizer", "decode", "--tokenizer", FOLDER / "tokenizer.json"],
            input=lines.encode(), capture_output=True, check=True).stdout.decode()
        self.assertEqual(decoded, "".join(
            self.tokenizer.decode(row, skip_special_tokens=True,
                                  clean_up_tokenization_spaces=False) for row in ids))

    def test_shards_have_the_ids_of_the_library(self) -> None:
        self.assertEqual(shard_ids(self.shard),
                         [*self.ids(TEXT.read_text()), self.tokenizer.eos_token_id])
        records = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)
        lines = encoded("--format", "jsonl", "--field", "body", given=records)
        expected = [[*self.ids(text), self.tokenizer.eos_token_id] for text in TEXTS]
        self.assertEqual([json.loads(line)["ids"] for line in lines.splitlines()], expected)

    def test_the_loss_of_a_chat_is_that_of_the_answers(self) -> None:
        messages = [{"role": "user", "content": "Which river?"},
                    {"role": "assistant", "content": "The Sarn, at café <tool call>."},
                    {"role": "user", "content": "And?"}, {"role": "assistant", "content": " no"}]
        line = json.loads(encoded("--format", "chat", given=json.dumps({"messages": messages})))
        whole = self.tokenizer.decode(line["ids"])
        self.assertEqual(whole, f"{START}{ASK}Which river?{ANSWER}The Sarn, at café <tool call>."
                                f"{END}{ASK}And?{ANSWER} no{END}")
        self.assertEqual([self.tokenizer.decode(line["ids"][begin:end])
                          for begin, end in line["trained"]],
                         [f"The Sarn, at café <tool call>.{END}", f" no{END}"])
        shard = WORK / "chat"
        run("data", "prepare", "--ids", "-", "--tokenizer", FOLDER / "tokenizer.json", "--output",
            shard, given=json.dumps(line))
        self.assertEqual(shard_ids(shard), line["ids"])
        header = json.loads(run("data", "inspect", shard, "--json"))
        self.assertEqual(header["trained"], sum(end - begin for begin, end in line["trained"]))

    def test_what_cannot_be_encoded_is_named(self) -> None:
        for form, given, message in [
                ("chat", '{"text": "a"}', 'line 1: the field "messages" is not a list'),
                ("chat", '{"messages": [{"role": "user", "content": "a"}]}',
                 "line 1: has no message of the assistant"),
                ("jsonl", '{"text": "a"}\n\n{"body": "b"}', 'line 3: the field "text" is absent'),
                ("jsonl", "[1]", "line 1: is not a JSON object"),
                ("jsonl", "{", "line 1: not valid JSON")]:
            self.assertIn(message, encoded("--format", form, given=given, code=1))

    def test_likelihoods_are_those_of_transformers(self) -> None:
        report = json.loads(run("eval", "--checkpoint", self.checkpoint, "--data", self.shard,
                                "--json", "-"))
        ids = shard_ids(self.shard)
        total = 0.0
        with torch.no_grad():
            for first in range(0, len(ids), CONTEXT):
                targets = torch.tensor(ids[first:first + CONTEXT])
                inputs = torch.cat([torch.tensor([self.tokenizer.bos_token_id]), targets[:-1]])
                total += torch.nn.functional.cross_entropy(
                    self.model(inputs[None]).logits[0].double(), targets, reduction="sum").item()
        self.assertLess(abs(report["nll"] - total), 1e-6 * total)
        for figure in ("word_perplexity", "lm_eval_perplexity", "bits_per_byte"):
            self.assertIsNone(report[figure])
        self.assertGreater(report["bits_per_token"], 0)
        message = run("eval", "--checkpoint", self.checkpoint, "--data", self.shard,
                      "--convention", "word", code=2)
        self.assertIn("--convention word: is not defined", message)

    def test_ids_are_scored(self) -> None:
        texts = [ids for ids in map(self.ids, TEXTS) if len(ids) > 1]
        lines = [{"ids": ids} for ids in texts]
        lines += [{"context_ids": ids[:1], "continuation_ids": ids[1:]} for ids in texts]
        given = "".join(json.dumps(line) + "\n" for line in lines)
        scores = [json.loads(line) for line in run("score", "--checkpoint", self.checkpoint, "--data",
                                                   "-", given=given).splitlines()]
        for i, ids in enumerate(texts):
            inputs = torch.tensor([[self.tokenizer.bos_token_id, *ids[:-1]]])
            with torch.no_grad():
                logits = self.model(inputs).logits[0].double()
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none")
            greedy = bool((logits.argmax(-1) == torch.tensor(ids))[1:].all())
            pair = scores[len(texts) + i]
            self.assertAlmostEqual(scores[i]["nll"], losses.sum().item(), delta=1e-4)
            self.assertAlmostEqual(pair["nll"], losses[1:].sum().item(), delta=1e-4)
            self.assertEqual(pair["greedy"], greedy)
        message = run("score", "--checkpoint", self.checkpoint, "--data", "-",
                      given='{"text": "a"}', code=3)
        self.assertIn("scripts/encode.sh", message)

    def test_prompts_are_ids_and_continuations_end_at_the_eos_token(self) -> None:
        prompts = [[self.tokenizer.bos_token_id, *self.ids(text)] for text in TEXTS[:3]]
        file = WORK / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt_ids": ids}) + "\n" for ids in prompts))
        lines = run("generate", "--checkpoint", self.checkpoint, "--prompts", file, "--out", "-",
                    "--greedy", "--max-tokens", str(NEW_TOKENS)).splitlines()
        for ids, line in zip(prompts, lines, strict=True):
            theirs = self.model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=NEW_TOKENS, do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id, pad_token_id=0)[0, len(ids):].tolist()
            text = self.tokenizer.decode(theirs, skip_special_tokens=True,
                                         clean_up_tokenization_spaces=False)
            self.assertEqual(json.loads(line)["text"], text)
            self.assertEqual(json.loads(line)["tokens"], len(theirs))
        words = " ".join(map(str, prompts[0]))
        one = json.loads(run("generate", "--checkpoint", self.checkpoint, "--prompt-ids", words,
                             "--greedy", "--max-tokens", str(NEW_TOKENS), "--json", "-"))
        self.assertEqual(one["samples"][0]["text"], json.loads(lines[0])["text"])
        message = run("generate", "--checkpoint", self.checkpoint, "--prompt", "a", code=3)
        self.assertIn("scripts/encode.sh", message)
        message = run("eval", "--checkpoint", self.checkpoint, "--data", TEXT, code=3)
        self.assertIn("scripts/encode.sh", message)

    def test_an_export_has_the_files_of_the_tokenizer(self) -> None:
        exported = WORK / "exported"
        run("export", "--checkpoint", self.checkpoint, "--to", exported)
        names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
        self.assertEqual({path.name for path in exported.iterdir()} & names, names)
        for name in names:
            self.assertEqual((exported / name).read_bytes(), (FOLDER / name).read_bytes(), name)
        config = json.loads((exported / "generation_config.json").read_text())
        self.assertEqual(config["bos_token_id"], self.tokenizer.bos_token_id)
        self.assertEqual(config["eos_token_id"], self.tokenizer.eos_token_id)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
