"""StableMask models that the program exported, in transformers: logits, generated texts, training,
adapters and the tokenizer. exported_model.sh runs it.

    exported_model.py PROGRAM CHECKPOINT TEXT [--lm-eval]

The models are small and random, with the tokenizer of CHECKPOINT, and are compared with PROGRAM.
--lm-eval: only the comparison of `stablemask eval --convention lm-eval` with the package lm_eval.
"""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TEMPORARY = tempfile.TemporaryDirectory()
WORK = Path(TEMPORARY.name)
os.environ |= {"HF_HOME": str(WORK / "hf"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
               "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
               "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
import transformers  # noqa: E402
from float64_evaluation import (  # noqa: E402
    MASK, MODEL, random_weights, safetensors_bytes, write_checkpoint)

Json = dict[str, Any]
PROGRAM, CHECKPOINT, TEXT = (Path(argument).resolve() for argument in sys.argv[1:4])
CONTEXT, VOCABULARY = 32, 320
NEW_TOKENS = 40  # beyond the mask length, which is CONTEXT
PROMPTS = ["x", " = elmo = \n the"]
TOLERANCE = 1e-4

# Changes of MODEL and MASK.
CACHED: dict[str, tuple[Json, Json]] = {
    "rope": ({}, {}),
    "rope-causal": ({"qk_norm": True, "kv_heads": 2}, {"enabled": False}),
    "rope-window": ({"window": 7, "rope_dims": 2, "rope_theta": 50.0, "rope_scaling": 3.0},
                    {"beyond": "none"}),
    "alibi": ({"position": "alibi", "kv_heads": 3, "norm": "layer", "ffn": "gelu"}, {}),
    "alibi-causal": ({"position": "alibi", "tied_head": True}, {"enabled": False}),
    "alibi-window": ({"position": "alibi", "window": 11},
                     {"mask_length": 20, "gamma": 0.0, "beyond": "none", "p_base": -1.0}),
    "learnable": ({"channels": 20, "heads": 3, "kv_heads": 3, "head_dim": 10},
                  {"learnable": True}),
    "none": ({"position": "none"},
             {"mask_length": "infinite", "gamma": [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]}),
}
TOKENIZER: dict[str, tuple[Json, Json]] = {"unigram": ({"vocab_size": 500}, {})}
UNCACHED: dict[str, tuple[Json, Json]] = {
    "sequence": ({}, {"mask_length": "sequence", "gamma": 0.25}),
    "log-length": ({"log_length_scale": True}, {}),
}


def run(*arguments: str | Path) -> str:
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"stablemask {arguments[0]}: {result.stderr}")
    return result.stdout


def make(name: str, tokenizer: Path = CHECKPOINT / "tokenizer.model") -> tuple[Path, Path]:
    """Checkpoint and exported folder of a model of the tables above."""
    checkpoint, folder = WORK / name / "checkpoint", WORK / name / "exported"
    if folder.exists():
        return checkpoint, folder
    model, mask = (CACHED | UNCACHED | TOKENIZER)[name]
    model, mask = MODEL | model, MASK | mask
    config = json.loads((CHECKPOINT / "config.json").read_text())
    config |= {"version": 2, "model": config["model"] | model | {"stable_mask": mask}}
    write_checkpoint(checkpoint, {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors_bytes(random_weights(model, mask, len(name))),
        "state.json": (CHECKPOINT / "state.json").read_bytes(),
        "tokenizer.model": tokenizer.read_bytes()})
    run("export", "--checkpoint", checkpoint, "--to", folder)
    return checkpoint, folder


def load(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return model.float().eval()


def load_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def generated(checkpoint: Path) -> list[Json]:
    """The program's greedy continuations with the logarithms of all probabilities."""
    file = checkpoint.parent / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    out = run("generate", "--checkpoint", checkpoint, "--prompts", file, "--out", "-", "--greedy",
              "--no-heal", "--max-tokens", str(NEW_TOKENS), "--logprobs", str(VOCABULARY))
    return [json.loads(line) for line in out.splitlines()]


def program_side(name: str) -> list[Json]:
    return generated(make(name)[0])


def continued(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)


def batches() -> dict[str, torch.Tensor]:
    ids = torch.randint(2, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


class ModelTest(unittest.TestCase):
    def test_logits_and_greedy_texts_equal_the_program_s(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            answers = dict(zip(CACHED, pool.map(program_side, CACHED)))
        for name in CACHED:
            model, tokenizer = load(make(name)[1]), load_tokenizer(make(name)[1])
            for prompt, answer in zip(PROMPTS, answers[name]):
                with self.subTest(name, prompt=prompt):
                    self.compare(model, tokenizer(prompt, return_tensors="pt"), answer)

    def compare(self, model: Any, inputs: Any, answer: Json) -> None:
        drawn = len(answer["logprobs"])  # fewer where end-of-text came
        ours = torch.empty(drawn, VOCABULARY)
        for row, token in enumerate(answer["logprobs"]):
            for top in token["top"]:
                ours[row, top["id"]] = top["logprob"]
        new = torch.tensor([[token["id"] for token in answer["logprobs"]]])
        whole = torch.cat([inputs.input_ids, new], 1)
        with torch.no_grad():
            logits = model(whole, use_cache=False).logits[0, -drawn - 1:-1]
        self.assertLess((logits.log_softmax(-1) - ours).abs().max().item(), TOLERANCE)
        self.assertEqual(continued(model, **inputs).tolist(), whole.tolist())

    def test_padding_changes_no_text(self) -> None:
        for name in ("rope-window", "alibi", "learnable"):
            model, tokenizer = load(make(name)[1]), load_tokenizer(make(name)[1])
            together = continued(model, **tokenizer(PROMPTS, return_tensors="pt", padding=True))
            for prompt, row in zip(PROMPTS, together):
                with self.subTest(name, prompt=prompt):
                    alone = continued(model, **tokenizer(prompt, return_tensors="pt"))[0]
                    self.assertEqual(row[-len(alone):].tolist(), alone.tolist())

    def test_models_that_depend_on_the_length_equal_the_program_s(self) -> None:
        for name in UNCACHED:
            with self.subTest(name):
                checkpoint, folder = make(name)
                model, window = load(folder), 29
                report = json.loads(run("eval", "--checkpoint", checkpoint, "--data", TEXT,
                                        "--window", str(window), "--json", "-"))
                ids = load_tokenizer(folder)(TEXT.read_text(), return_tensors="pt").input_ids[0]
                total = 0.0
                with torch.no_grad():
                    for at in range(0, len(ids) - 1, window):
                        inputs = ids[None, at:at + window].clone()
                        inputs[0, 0] = 1  # every window of the program begins with EOS
                        logits = model(inputs).logits[0].log_softmax(-1)
                        targets = ids[at + 1:at + 1 + window]
                        total -= logits[:len(targets)].gather(1, targets[:, None]).sum().item()
                self.assertAlmostEqual(total / report["nll"], 1, delta=1e-5)
                with self.assertRaisesRegex(ValueError, "use_cache=False"):
                    model(ids[None, :4], use_cache=True)

    def test_biases_and_scaled_rope_equal_llama_s(self) -> None:
        """The tensors have the same names."""
        code = sys.modules[type(load(make("rope")[1])).__module__]
        original = {"original_max_position_embeddings": 16, "factor": 4.0}
        ours = {"original_context": 16, "factor": 4.0}
        low_high = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        fast_slow = {"beta_fast": 4.0, "beta_slow": 1.0}
        for kind, theirs, mine in (
                ("linear", {"factor": 4.0}, {"factor": 4.0}),
                ("llama3", original | low_high, ours | low_high),
                ("yarn", original | fast_slow, ours | fast_slow)):
            with self.subTest(kind):
                torch.manual_seed(1)
                llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
                    vocab_size=64, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
                    num_attention_heads=3, num_key_value_heads=1, attention_bias=True,
                    mlp_bias=True, max_position_embeddings=64, rms_norm_eps=1e-5,
                    rope_parameters={"rope_type": kind, "rope_theta": 500.0, **theirs})).eval()
                model = code.StableMaskForCausalLM(code.StableMaskConfig({"model": {
                    "vocab_size": 64, "channels": 48, "ffn_hidden": 40, "layers": 2, "heads": 3,
                    "kv_heads": 1, "bias": "all", "rope_theta": 500.0,
                    "rope_scaling": {"kind": kind, **mine}, "stable_mask": {"enabled": False}}}))
                for parameter in llama.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
                model.load_state_dict(llama.state_dict())
                ids = torch.randint(64, (2, 60))
                with torch.no_grad():
                    difference = (model.eval()(ids).logits - llama(ids).logits).abs().max()
                self.assertLess(difference.item(), TOLERANCE)

    def test_a_saved_model_is_the_same(self) -> None:
        _, folder = make("learnable")
        model = load(folder)
        model.save_pretrained(WORK / "saved")
        again = load(WORK / "saved")
        self.assertEqual(again.config.to_dict() | {"_name_or_path": ""},
                         model.config.to_dict() | {"_name_or_path": ""})
        before, after = model.state_dict(), again.state_dict()
        self.assertEqual(before.keys(), after.keys())
        self.assertTrue(all(torch.equal(before[name], after[name]) for name in before))

    def test_attention_equals_the_literal_formula(self) -> None:
        module = sys.modules[type(load(make("rope")[1])).__module__]
        random_numbers = torch.Generator().manual_seed(0)
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 0.02)):
            q, k, v, grad = (torch.randn(2, heads, 9, 16, generator=random_numbers).to(dtype)
                             for heads in (4, 2, 2, 4))
            # Masses that bf16 does not hold, and none at all.
            mass = torch.linspace(-2, 6.1, 36).view(1, 4, 9)
            mass[:, :, -1] = -math.inf
            for log_mass in (mass, None):
                with self.subTest(dtype=dtype, mass=log_mass is not None):
                    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
                    out = module.attend(*inputs, None, log_mass)
                    wide = [x.double().requires_grad_() for x in (q, k, v)]
                    expected = literal_attention(*wide, log_mass)
                    self.assertLess((out - expected).abs().max().item(), tolerance)
                    out.backward(grad)
                    expected.backward(grad.double())
                    for x, y in zip(inputs, wide):
                        error = (x.grad - y.grad).abs().max() / y.grad.abs().max()
                        self.assertLess(error.item(), tolerance)


def literal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                      log_mass: torch.Tensor | None) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    exponentials = scores.exp() * torch.ones(scores.shape[-2:]).tril()
    total = exponentials.sum(-1, keepdim=True)
    if log_mass is not None:
        total = total + log_mass.double().exp()[..., None]
    return exponentials / total @ v


class TrainingTest(unittest.TestCase):
    def test_the_trainer_steps_with_and_without_recomputation(self) -> None:
        losses = []
        for recompute in (False, True):
            model = load(make("learnable")[1])
            settings = transformers.TrainingArguments(
                str(WORK / "trainer"), max_steps=2, learning_rate=0.01, report_to=[],
                per_device_train_batch_size=2, logging_steps=1, save_strategy="no", use_cpu=True,
                gradient_checkpointing=recompute, disable_tqdm=True)
            before = model.model.layers[0].self_attn.stable_mask.gamma_raw.clone()
            batch = batches()
            data = [{name: rows[i] for name, rows in batch.items()} for i in range(2)]
            trainer = transformers.Trainer(model, settings, train_dataset=data)
            trainer.log = lambda values, *rest: losses.append(values.get("loss"))  # no output
            trainer.train()
            self.assertFalse(torch.equal(
                before, model.model.layers[0].self_attn.stable_mask.gamma_raw))
        losses = [loss for loss in losses if loss is not None]
        self.assertEqual(len(losses), 4)
        self.assertLess(losses[1], losses[0])
        for plain, recomputed in zip(losses[:2], losses[2:]):
            self.assertAlmostEqual(plain, recomputed, places=4)

    def test_adapters_train_alone(self) -> None:
        import peft
        base = load(make("rope")[1])
        weights = {name: value.clone() for name, value in base.state_dict().items()}
        model = peft.get_peft_model(base, peft.LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
        batch, losses = batches(), []
        for _ in range(3):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        self.assertLess(losses[-1], losses[0])
        kept = model.unload().state_dict()
        self.assertTrue(all(torch.equal(kept[name], weights[name]) for name in weights))


PIECES = [" ", "  ", "\n", "\t", "\r", "\x00", "\x7f", "a", "x", "the", " the", "\u2581", "\u00a0",
          "\ufeff", "e\u0301", "é", "漢字", "。", "😀", "👩‍👩‍👧", "א", "\U0010ffff", "<unk>", "</s>",
          "<|unknown|>", "<0x41>", "<0x0A>", "<s>", "aaaa", " = ", "ﬁ", "0123456789", "ABCDEF"]


class TokenizerTest(unittest.TestCase):
    def test_ids_and_texts_equal_the_program_s(self) -> None:
        numbers = random.Random(3)
        text = TEXT.read_text() + "".join(numbers.choice(PIECES) for _ in range(6000))
        file, unigram = WORK / "nasty.txt", WORK / "unigram.model"
        file.write_bytes(text.encode())
        run("tokenizer", "train", "--input", file, "--output", unigram, "--vocab-size", "500",
            "--type", "unigram")
        for name, model in (("rope", CHECKPOINT / "tokenizer.model"), ("unigram", unigram)):
            with self.subTest(name):
                tokenizer = load_tokenizer(make(name, model)[1])
                ids = tokenizer.encode(text, add_special_tokens=False)
                ours = run("tokenizer", "encode", "--tokenizer", model, "--input", file).split()
                # Not assertEqual, which takes minutes to print what differs.
                self.assertTrue(ids == [int(token) for token in ours])
                self.assertTrue(tokenizer.decode(ids) == text)
                self.assertTrue(tokenizer.decode(ids, skip_special_tokens=True) == text)
                self.assertEqual(tokenizer("a").input_ids, [1, *tokenizer.encode(
                    "a", add_special_tokens=False)])


class LmEvalTest(unittest.TestCase):
    def test_word_perplexity_equals_the_program_s(self) -> None:
        import lm_eval
        checkpoint, folder = make("alibi")
        page = WORK / "page.jsonl"
        page.write_text(json.dumps({"page": TEXT.read_text()}) + "\n")
        task = {"task": "local_text", "dataset_path": "json", "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(page)}},
                "output_type": "loglikelihood_rolling", "doc_to_text": "",
                "doc_to_target": "{{page}}",
                "metric_list": [{"metric": "word_perplexity"}]}
        window = 1024  # the whole text
        results = lm_eval.simple_evaluate(
            model="hf", tasks=[task], device="cpu", batch_size=1, bootstrap_iters=0,
            model_args={"pretrained": str(folder), "trust_remote_code": True, "dtype": "float32",
                        "add_bos_token": False, "prefix_token_id": 1, "max_length": window})
        theirs = results["results"]["local_text"]["word_perplexity,none"]
        report = json.loads(run("eval", "--checkpoint", checkpoint, "--data", page, "--field",
                                "page", "--window", str(window), "--json", "-"))
        self.assertAlmostEqual(theirs / report["lm_eval_perplexity"], 1, delta=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = ["LmEvalTest"] if "--lm-eval" in sys.argv else [
        "ModelTest", "TrainingTest", "TokenizerTest"]
    unittest.main(argv=[sys.argv[0], *chosen], warnings="ignore")
