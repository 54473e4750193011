"""scripts/study: the figures and tables that are made of finished runs.

    tables_test.py FOLDER-OF-SCRIPTS
"""

import contextlib
import io
import json
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv.pop(1))

import finetune  # noqa: E402
import perplexity  # noqa: E402
import position  # noqa: E402
import result  # noqa: E402
import stability  # noqa: E402


def printed(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        function(*arguments)
    return out.getvalue()


def lines_of(picture):
    """How many points each line of a chart has."""
    root = xml.etree.ElementTree.fromstring(picture)
    return [len(line.get("points").split()) for line in root.iter("{http://www.w3.org/2000/svg}polyline")]


def metrics(step, **more):
    return {"step": step, "tokens": 100 * step, "loss": 5.0, "grad_norm": 1.0,
            "tokens_per_second": 10.0 * step} | more


class Folder(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.run_folder = Path(folder.name)

    def write(self, name, value):
        (self.run_folder / name).write_text(json.dumps(value), encoding="utf-8")

    def write_metrics(self, lines):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.run_folder / "metrics.jsonl").write_text(text, encoding="utf-8")


class RunLine(Folder):

    def test_figures(self):
        self.write_metrics([metrics(1, grad_norm=7.0), metrics(2), metrics(3, valid_loss=4.0, loss=4.5)])
        self.assertEqual(
            result.run_line(self.run_folder, ["mask=1", "seed=2", "lr=0.001", "card=a b=c"]),
            {"mask": "1", "seed": 2, "lr": 0.001, "card": "a b=c", "tokens": 300,
             "tokens_per_second": 20.0, "largest_grad_norm": 7.0, "train_loss": 4.5, "valid_loss": 4.0})

    def test_evaluations(self):
        self.write_metrics([metrics(1)])
        self.write("valid.json", {"word_perplexity": 90.0})
        self.write("test.json", {"lengths": [{"window": 512, "word_perplexity": 80.0},
                                             {"window": 1024, "word_perplexity": 70.0}]})
        line = result.run_line(self.run_folder, [])
        self.assertEqual(line["valid"], 90.0)
        self.assertEqual(line["test"], {"512": 80.0, "1024": 70.0})


class Difference(unittest.TestCase):

    def test_interval_by_hand(self):
        # Percents 1, 2, 3: mean 2, standard deviation 1, Student's t with 2 degrees 4.303.
        values, baseline = {1: 101.0, 2: 204.0, 3: 103.0}, {1: 100.0, 2: 200.0, 3: 100.0}
        self.assertEqual(result.difference(values, baseline), "+2.00 ± 2.48")
        self.assertEqual(result.difference({1: 101.0, 2: 202.1}, {1: 100.0, 2: 200.0}),
                         "+1.02 ± 0.32 *")

    def test_pairs_by_seed(self):
        self.assertEqual(result.difference({1: 101.0, 3: 9.0}, {1: 100.0, 2: 1.0}), "+1.00")
        self.assertEqual(result.difference({1: 101.0}, {2: 100.0}), "")


class Perplexity(Folder):

    def lines(self):
        def run(preset, mask, seed, test, **more):
            return {"preset": preset, "context": 512, "epochs": 1, "position": "alibi", "mask": mask,
                    "seed": seed, "steps": 9, "batch": 4, "lr": 0.001, "card": "a card", "valid": test + 1,
                    "test": {"512": test, "1024": 2 * test}} | more
        return [run("1.4b", "auto", 1, 96.0), run("1.4b", "auto", 2, 97.0), run("71m", "slopes", 1, 90.0),
                run("71m", "slopes", 2, 91.0), run("71m", "causal", 1, 100.0), run("71m", "causal", 2, 100.0),
                run("1.4b", "causal", 1, 100.0), run("1.4b", "causal", 2, 100.0),
                run("71m", "auto", 1, 50.0, position="rope")]

    def read(self):
        """As from a file that the command line names."""
        path = self.run_folder / "results.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines()), encoding="utf-8")
        arguments, sys.argv = sys.argv, ["perplexity.py", str(path)]
        try:
            return result.read_results("a script")
        finally:
            sys.argv = arguments

    def test_auto_has_the_name_of_what_it_stands_for(self):
        self.assertEqual([line["mask"] for line in self.read() if line["mask"] != "causal"],
                         ["slopes"] * 4 + ["1"])

    def test_tables(self):
        table = printed(perplexity.print_all, self.read())
        self.assertIn("| slopes | 2 | 91.50 | 90.50 | 181.00 | -9.41 ± 6.29 * | -9.50 ± 6.35 * | "
                      "-9.50 ± 6.35 * |", table)
        self.assertIn("| 1 | 1 | 51.00 | 50.00 | 100.00 |  |  |  |", table)  # no causal run
        self.assertIn("| position | mask | 71m | 1.4b | 1.4b less 71m |", table)
        self.assertIn("| ALiBi | slopes | -9.50 ± 6.35 * | -3.50 ± 6.35 | +6.00 ± 0.00 * |", table)
        self.assertLess(table.index("**71m, rope**"), table.index("**71m, alibi**"))
        self.assertLess(table.index("**71m, alibi**"), table.index("**1.4b, alibi**"))

    def test_chart(self):
        picture = perplexity.chart([line | {"epochs": 4} for line in self.read()])
        root = xml.etree.ElementTree.fromstring(picture)
        self.assertEqual(len(list(root.iter("{http://www.w3.org/2000/svg}circle"))), 2)
        self.assertIn("1.4b, 512 tokens, epochs: 4", picture)

    def test_order_of_masks(self):
        masks = ["learnable", "sink", "4", "infinite", "0.25", "slopes"]
        self.assertEqual(sorted(masks, key=perplexity.place_of),
                         ["slopes", "0.25", "4", "infinite", "sink", "learnable"])


class Stability(Folder):

    def test_spikes(self):
        norms = [9.0] + [1.0] * 9 + [3.1, 1.0, 2.9, 10.0]
        self.assertEqual(stability.spikes_of(norms, 1), 2)
        self.assertEqual(stability.spikes_of(norms, 11), 1)
        # Against the steps just before: a level that stays high is a spike until half of them have it.
        self.assertEqual(stability.spikes_of([1.0] * 50 + [4.0] * 100, 0), 25)

    def test_line(self):
        self.write_metrics([metrics(step + 1, grad_norm=50.0 if step in (0, 12) else 2.0)
                            for step in range(20)])
        self.write("valid.json", {"nll": 500.0, "tokens": 100, "unigram": {"nll": 700.0, "tokens": 100}})
        line = stability.line_of(self.run_folder, ["steps=20", "lr=0.001"])
        self.assertEqual((line["largest_grad_norm"], line["median_grad_norm"], line["spikes"]),
                         (50.0, 2.0, 1))
        self.assertEqual((line["valid_loss"], line["unigram_loss"]), (5.0, 7.0))
        self.assertFalse(stability.diverged(line))
        self.assertTrue(stability.diverged(line | {"valid_loss": 7.0}))
        self.assertTrue(stability.diverged(line | {"finished_steps": 19}))

    def test_run_that_ended_in_its_warm_up(self):
        self.write_metrics([metrics(1), metrics(2, loss=None, grad_norm=None)])
        line = stability.line_of(self.run_folder, ["steps=100", "lr=1"])
        self.assertIsNone(line["largest_grad_norm"])
        self.assertEqual((line["finished_steps"], line["spikes"]), (1, 0))
        self.assertTrue(stability.diverged(line))

    def test_table(self):
        def run(mask, lr, seed, loss):
            return {"preset": "71m", "steps": 300, "batch": 64, "context": 512, "card": "a card",
                    "position": "rope", "mask": mask, "lr": lr, "seed": seed, "finished_steps": 300,
                    "valid_loss": loss, "unigram_loss": 7.0, "largest_grad_norm": lr * 1000,
                    "spikes": seed}
        runs = [run("causal", 0.001, 1, 5.0), run("causal", 0.001, 2, 5.2), run("causal", 0.002, 1, 4.9),
                run("causal", 0.002, 2, 7.1), run("auto", 0.001, 1, 5.1), run("auto", 0.002, 1, 4.8)]
        table = printed(stability.print_tables, runs)
        self.assertIn("| rope, causal | 5.100 | 4.900, 1 of 2 diverged | 0.001 | 0.001 |", table)
        self.assertIn("| rope, auto | 5.100 | 4.800 | 0.002 | 0.002 |", table)
        self.assertIn("| rope, causal | 1, 1.5 | 2, 1.5 |", table)
        self.assertIn("| rope, auto | +0.100 | -0.100 |", table)
        self.assertNotIn("| both |", table)
        table = printed(stability.print_tables, runs + [one | {"position": "alibi"} for one in runs])
        self.assertIn("| both | +0.100 ± 0.000 * | -0.100 ± 0.000 * |", table)
        runs[3]["seed"] = 1
        runs[2]["valid_loss"] = None  # no run of this learning rate trained
        self.assertEqual(lines_of(stability.chart(runs)), [1, 2])


class Finetune(Folder):

    def test_line(self):
        self.write_metrics([metrics(1), metrics(10, valid_word_ppl=95.0),
                            metrics(20, valid_word_ppl=90.0, valid_loss=3.0)])
        self.write("start.json", {"word_perplexity": 120.0})
        line = finetune.line_of(self.run_folder, ["way=-2", "seed=1"])
        self.assertEqual(line["way"], "-2")
        self.assertEqual(line["validations"], {0: 120.0, 10: 95.0, 20: 90.0})

    def test_no_worse_from(self):
        self.assertEqual(finetune.no_worse_from({0: 5.0, 10: 0.05, 20: 0.3, 30: 0.2, 40: -1.0}), 30)
        self.assertEqual(finetune.no_worse_from({0: -1.0, 10: 0.0}), 0)
        self.assertIsNone(finetune.no_worse_from({0: 0.0, 10: 0.3}))

    def test_shown_steps(self):
        self.assertEqual(finetune.shown_steps([0, 20, 40, 60, 80, 100, 400]), [0, 20, 40, 80, 400])
        self.assertEqual(finetune.shown_steps([0, 20, 40, 60]), [0, 20, 60])

    def test_table(self):
        def run(way, seed, start, end):
            return {"preset": "71m", "position": "alibi", "context": 500, "epochs": 1, "steps": 20,
                    "batch": 100, "lr_share": 0.3, "pretrained_lr": 0.001, "card": "a card", "way": way,
                    "seed": seed, "valid": end, "test": {"500": 2 * end, "1000": 3 * end},
                    "validations": {"0": start, "20": end}}
        runs = [run("causal", 1, 100.0, 90.0), run("causal", 2, 110.0, 100.0),
                run("auto", 1, 120.0, 89.1), run("auto", 2, 132.0, 98.9)]
        table = printed(finetune.print_all, runs)
        self.assertIn("peak learning rate 0.0003;", table)
        self.assertIn("| tokens: 0 | 1M |", table)
        self.assertIn("| auto | 2 | +20.00 | -1.05 | 1M | 94.00 | -1.05 ± 0.64 * | 188.00 | "
                      "-1.05 ± 0.64 * | -1.05 ± 0.64 * |", table)
        for one in runs:
            one["validations"]["10"] = 95.0
        self.assertEqual(lines_of(finetune.chart(runs)), [2])

    def test_order_of_ways(self):
        ways = ["-8", "warm", "0.5", "causal", "-2", "auto"]
        self.assertEqual(sorted(ways, key=finetune.place),
                         ["causal", "auto", "warm", "0.5", "-2", "-8"])


class Position(Folder):

    def test_line_and_table(self):
        (self.run_folder / "results.tsv").write_text(
            "".join(f"count\t{model}\t{nats}\t3.674\n"
                    for model, nats in zip(position.MODELS, (3.7, 0.02, 3.6, 0.04))), encoding="utf-8")
        runs = [position.line_of(self.run_folder, ["layers=1", "channels=32", f"lr={lr}", f"seed={seed}",
                                                   "gamma=auto"])
                for lr, seed in ((0.002, 1), (0.002, 2), (0.004, 1), (0.004, 2))]
        runs[0]["excess"]["rope-stablemask"] = 1.0  # the other learning rate is the better one
        runs[3]["excess"]["rope-stablemask"] = 0.03
        table = printed(position.print_all, runs)
        self.assertIn("|  | guessing | 3.674 |", table)
        self.assertIn("| 1 x 32 | RoPE, StableMask | 0.025 (0.020 to 0.030) |", table)
        self.assertIn("| 1 x 32 | RoPE, causal | 3.700 (3.700 to 3.700) |", table)
        self.assertIn("| layers x channels | StableMask − causal | count |", table)
        self.assertIn("| 1 x 32 | ALiBi | -3.56 ± 0.00 * |", table)
        larger = [run | {"channels": 64} for run in runs]
        self.assertEqual(lines_of(position.chart(runs + larger)), [2, 2, 2, 2])


unittest.main()
