"""Models of transformers, imported and exported: likelihoods, logits and greedy texts equal those of
transformers, and an export of an import has the bits of the original; the same for adapters of
PEFT. hugging_face.sh runs it.

    hugging_face.py PROGRAM CHECKPOINT SHARD

Models are small and random, with the tokenizer of CHECKPOINT; SHARD has ids of that tokenizer.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPORARY = tempfile.TemporaryDirectory()
WORK = Path(TEMPORARY.name)
os.environ |= {"HF_HOME": str(WORK / "hf"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
               "OMP_NUM_THREADS": "1"}

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PROGRAM, CHECKPOINT, SHARD = (Path(argument).resolve() for argument in sys.argv[1:4])
VOCABULARY, EOS, CONTEXT, NEW_TOKENS = 320, 1, 64, 40
LOGIT_TOLERANCE = 1e-4  # of logarithms of probabilities, fp32 on both sides
SUM_TOLERANCE = 1e-6  # relative, of the sum of negative log-likelihoods

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY}
GROUPED = SIZES | {"num_key_value_heads": 2}
# Fields that say nothing about what a model computes, ids of special tokens, which follow from the
# tokenizer, and sizes that the shapes of the tensors show.
UNCOMPARED = {"transformers_version", "_name_or_path", "bos_token_id", "eos_token_id",
              "pad_token_id", "dtype", "torch_dtype", "rope_theta", "rope_scaling", "pretraining_tp",
              "max_window_layers", "attention_dropout", "hidden_dropout", "classifier_dropout",
              "resid_pdrop", "embd_pdrop", "attn_pdrop", "n_inner", "head_dim"}


@dataclass
class Case:
    """A model class of transformers, its configuration, and how it is saved."""
    architecture: str
    config: dict[str, Any]
    dtype: torch.dtype = torch.float32
    saved: dict[str, Any] = field(default_factory=dict)  # arguments of save_pretrained


CASES = {
    "llama": Case("Llama", GROUPED | {"head_dim": 10}),
    "llama-bias-llama3": Case(
        "Llama",
        GROUPED | {"attention_bias": True, "mlp_bias": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
        torch.bfloat16, {"max_shard_size": "20KB"}),
    "llama-tied-yarn": Case(
        "Llama",
        SIZES | {"tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
            "original_max_position_embeddings": 16}},
        torch.float16),
    "mistral": Case("Mistral", GROUPED | {"sliding_window": 5}, saved={"max_shard_size": "50KB"}),
    "qwen2": Case("Qwen2", GROUPED | {"rope_parameters": {
        "rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
    "qwen2-window": Case("Qwen2", GROUPED | {
        "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}, torch.bfloat16),
    "qwen3": Case("Qwen3", GROUPED | {"head_dim": 12, "tie_word_embeddings": True}),
    "neox": Case("GPTNeoX", SIZES | {"rope_parameters": {
        "rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.25}}),
    "neox-sequential": Case("GPTNeoX", SIZES | {
        "use_parallel_residual": False, "hidden_act": "gelu_new"}, torch.float16),
    "gpt2": Case("GPT2LMHead", {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
}


def run(*arguments: str | Path) -> str:
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"stablemask {arguments[0]}: {result.stderr}")
    return result.stdout


def make(case: Case) -> Any:
    """The model with random weights, biases and norms included, in case.dtype."""
    prefix = case.architecture.removesuffix("LMHead")
    suffix = "Model" if case.architecture.endswith("LMHead") else "ForCausalLM"
    config = getattr(transformers, prefix + "Config")(**case.config)
    model = getattr(transformers, case.architecture + suffix)(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.25
            parameter.copy_(parameter + noise if parameter.dim() == 1 else noise)
    return model.to(case.dtype).eval()


def program_side(name: str) -> dict[str, Any]:
    """What the program says about the model in WORK/name/original."""
    folder = WORK / name
    checkpoint, export = folder / "checkpoint", folder / "exported"
    dtype = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    run("import", "--from", folder / "original", "--out", checkpoint, "--tokenizer",
        CHECKPOINT / "tokenizer.model")
    run("export", "--checkpoint", checkpoint, "--to", export, "--dtype", dtype[CASES[name].dtype])
    report = json.loads(run("eval", "--checkpoint", checkpoint, "--data", SHARD, "--json", "-"))
    return {"nll": report["nll"], "tokens": greedy_tokens(checkpoint)}


def greedy_tokens(checkpoint: Path) -> list[dict[str, Any]]:
    """The tokens that the program draws, each with the logarithms of all probabilities."""
    prompts = checkpoint.with_name(checkpoint.name + "-prompts.jsonl")
    prompts.write_text('{"prompt": ""}\n')
    answer = run("generate", "--checkpoint", checkpoint, "--prompts", prompts, "--out", "-",
                 "--greedy", "--max-tokens", str(NEW_TOKENS), "--logprobs", str(VOCABULARY))
    return json.loads(answer)["logprobs"]


def logit_error(model: Any, tokens: list[dict[str, Any]]) -> float:
    """Largest difference of a logarithm of a probability between the model and greedy_tokens."""
    ids = torch.tensor([[EOS] + [token["id"] for token in tokens]])
    with torch.no_grad():
        theirs = model(ids[:, :-1]).logits[0].log_softmax(-1)
    ours = torch.full_like(theirs, float("nan"))
    for row, token in enumerate(tokens):
        for top in token["top"]:
            ours[row, top["id"]] = top["logprob"]
    return (ours - theirs).abs().max().item()


def shard_ids() -> torch.Tensor:
    """docs/formats.md: a header of 256 bytes, then ids of 16 bits."""
    data = SHARD.read_bytes()
    count = struct.unpack_from("<Q", data, 32)[0]
    return torch.tensor(struct.unpack_from(f"<{count}H", data, 256))


def sum_of_nll(model: Any) -> float:
    """By windows that do not overlap, each with EOS as its first input."""
    ids = shard_ids()
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(ids), CONTEXT):
            targets = ids[first:first + CONTEXT]
            inputs = torch.cat([torch.tensor([EOS]), targets[:-1]])
            total += torch.nn.functional.cross_entropy(
                model(inputs[None]).logits[0].double(), targets, reduction="sum").item()
    return total


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


class HuggingFaceTest(unittest.TestCase):
    ours: dict[str, dict[str, Any]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.models = {}
        for name, case in CASES.items():
            model = make(case)
            model.save_pretrained(WORK / name / "original", **case.saved)
            # Read again: a model that was bf16 keeps frequencies of RoPE that were rounded.
            cls.models[name] = type(model).from_pretrained(WORK / name / "original",
                                                           dtype=torch.float32).eval()
        with ThreadPoolExecutor(2) as pool:
            cls.ours = dict(zip(CASES, pool.map(program_side, CASES)))

    def test_likelihoods_equal_those_of_transformers(self) -> None:
        for name, model in self.models.items():
            with self.subTest(name):
                theirs = sum_of_nll(model)
                self.assertLess(abs(self.ours[name]["nll"] - theirs), SUM_TOLERANCE * theirs)

    def test_logits_and_greedy_texts_equal_those_of_transformers(self) -> None:
        for name, model in self.models.items():
            with self.subTest(name), torch.no_grad():
                tokens = self.ours[name]["tokens"]
                ids = model.generate(torch.tensor([[EOS]]), max_new_tokens=NEW_TOKENS,
                                     do_sample=False, eos_token_id=None, pad_token_id=0)
                self.assertEqual([token["id"] for token in tokens], ids[0, 1:].tolist())
                self.assertLess(logit_error(model, tokens), LOGIT_TOLERANCE)

    def test_an_export_of_an_import_is_the_original(self) -> None:
        for name in CASES:
            with self.subTest(name):
                original, exported = WORK / name / "original", WORK / name / "exported"
                before, after = stored_tensors(original), stored_tensors(exported)
                self.assertEqual(before.keys(), after.keys())
                for tensor, value in before.items():
                    self.assertEqual(value.dtype, after[tensor].dtype)
                    self.assertTrue(torch.equal(value, after[tensor]), tensor)
                configs = [transformers.AutoConfig.from_pretrained(folder).to_dict()
                           for folder in (original, exported)]
                for key in (configs[0].keys() | configs[1].keys()) - UNCOMPARED:
                    self.assertEqual(configs[0].get(key), configs[1].get(key), key)


class PeftTest(unittest.TestCase):
    """Adapters of a class whose projections are tensors of their own, and of one that keeps
    queries, keys and values in one tensor, which both sides adapt in other ways."""
    MODULES = {"llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
               "gpt2": ["attn.c_proj", "mlp.c_fc"]}

    def base(self, name: str) -> tuple[Any, Path]:
        """A model of transformers and the same as a checkpoint."""
        folder = WORK / "peft" / name
        model = make(CASES[name])
        if not folder.exists():
            model.save_pretrained(folder / "original")
            run("import", "--from", folder / "original", "--out", folder / "checkpoint",
                "--tokenizer", CHECKPOINT / "tokenizer.model")
        return model, folder

    def adapted(self, name: str, modules: list[str]) -> tuple[Any, Path]:
        model, folder = self.base(name)
        adapted = peft.get_peft_model(model, peft.LoraConfig(
            r=3, lora_alpha=5, lora_dropout=0.1, target_modules=modules, task_type="CAUSAL_LM",
            fan_in_fan_out=name == "gpt2"))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return adapted.eval(), folder

    def test_imported_adapters_compute_what_peft_does_and_are_exported_as_they_were(self) -> None:
        for name, modules in self.MODULES.items():
            with self.subTest(name):
                model, folder = self.adapted(name, modules)
                model.save_pretrained(folder / "adapter")
                run("import", "--from", folder / "adapter", "--base", folder / "checkpoint",
                    "--out", folder / "adapted")
                self.assertLess(logit_error(model, greedy_tokens(folder / "adapted")),
                                LOGIT_TOLERANCE)
                run("export", "--checkpoint", folder / "adapted", "--to", folder / "exported")
                before = stored_tensors(folder / "adapter")
                after = stored_tensors(folder / "exported")
                for key, value in after.items():  # those of a packed projection come together
                    expected = before[key] if key in before else torch.zeros_like(value)
                    self.assertTrue(torch.equal(value, expected), key)
                self.assertLessEqual(before.keys(), after.keys())

    def test_trained_adapters_compute_in_peft_what_they_do_here(self) -> None:
        for name, targets in (("llama", ["qkv", "proj", "up", "down"]), ("gpt2", ["up", "down"])):
            with self.subTest(name):
                model, folder = self.base(name)
                config = {
                    "data": {"train": [str(SHARD)],
                             "tokenizer": str(CHECKPOINT / "tokenizer.model")},
                    "train": {"out": str(folder / "run"), "init_from": str(folder / "checkpoint"),
                              "device": "cpu", "context": 32, "batch": 4, "steps": 6},
                    "optimizer": {"lr": 0.05}, "schedule": {"warmup_steps": 1},
                    "lora": {"rank": 4, "alpha": 6, "targets": targets}}
                (folder / "lora.json").write_text(json.dumps(config))
                run("finetune", folder / "lora.json", "--quiet")
                run("export", "--checkpoint", folder / "run", "--to", folder / "trained")
                tokens = greedy_tokens(folder / "run")
                self.assertGreater(logit_error(model.eval(), tokens), 100 * LOGIT_TOLERANCE)
                adapted = peft.PeftModel.from_pretrained(model, folder / "trained").eval()
                self.assertLess(logit_error(adapted, tokens), LOGIT_TOLERANCE)

    def test_adapters_that_the_other_side_cannot_express_are_refused(self) -> None:
        model, folder = self.adapted("gpt2", ["attn.c_attn"])
        model.save_pretrained(folder / "packed")
        with self.assertRaisesRegex(AssertionError, 'not importable are adapters of "qkv"'):
            run("import", "--from", folder / "packed", "--base", folder / "checkpoint", "--out",
                folder / "refused")
        with self.assertRaisesRegex(AssertionError, "holds adapters of PEFT; name .* --base"):
            run("import", "--from", folder / "packed", "--out", folder / "refused")
        config = json.loads((folder / "packed" / "adapter_config.json").read_text())
        (folder / "packed" / "adapter_config.json").write_text(
            json.dumps(config | {"use_dora": True}))
        with self.assertRaisesRegex(AssertionError, "use_dora: .* another model than LoRA"):
            run("import", "--from", folder / "packed", "--base", folder / "checkpoint", "--out",
                folder / "refused")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
