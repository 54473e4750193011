"""scripts/study: lines, tables and pictures of length.py, sinks.py and quantize.py.

    measurements_test.py FOLDER-OF-SCRIPTS
"""

import contextlib
import io
import json
import math
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv.pop(1))

import chart  # noqa: E402
import length  # noqa: E402
import quantize  # noqa: E402
import result  # noqa: E402
import sinks  # noqa: E402

RUN = {"preset": "71m", "context": 512, "epochs": 1, "batch": 64, "steps": 100, "position": "rope",
       "mask": "causal", "seed": 1, "card": "CPU", "commit": "none"}


def printed(function, results):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        function(results)
    return text.getvalue()


class Folder(unittest.TestCase):
    """A run folder with a result, and what the pairs of a line say."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.run_folder = Path(self.folder.name)
        self.write("result.json", RUN | {"valid": 30.0})

    def write(self, name, content):
        path = self.run_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    def line(self, module, *pairs):
        return module.line_of(self.run_folder, list(pairs))


class Interval(unittest.TestCase):

    def test_star_where_it_excludes_zero(self):
        self.assertEqual(result.interval([1.0, 2.0, 3.0]), "+2.00 ± 2.48")
        self.assertEqual(result.interval([1.9, 2.0, 2.1]), "+2.00 ± 0.25 *")
        self.assertEqual(result.interval([0.0, 0.0], 1), "+0.0 ± 0.0")
        self.assertEqual(result.interval([-1.0]), "-1.00")
        self.assertEqual(result.interval([]), "")

    def test_pairs_by_seed(self):
        self.assertEqual(result.difference({1: 110.0, 3: 1.0}, {1: 100.0, 2: 1.0}), "+10.00")


class Length(Folder):

    def test_line(self):
        self.write("reports/1024.json", {"lengths": [{"window": 1024, "word_perplexity": 20.0}]})
        self.write("reports/512.json", {"lengths": [{"window": 512, "word_perplexity": 10.0}]})
        line = self.line(length, "split=test", "mask_length=kept", "window=0",
                         f"reports={self.run_folder / 'reports'}")
        self.assertEqual(list(line["perplexity"].items()), [("512", 10.0), ("1024", 20.0)])
        self.assertEqual((line["window"], line["seed"], line["mask"]), (0, 1, "causal"))
        self.assertNotIn("reports", line)

    def lines(self):
        def one(mask, form, window, seed, *values):
            return RUN | {"mask": mask, "mask_length": form, "window": window, "split": "test",
                          "seed": seed, "perplexity": {"512": values[0], "1024": values[1]}}
        return [one("1", "rescaled", 0, 1, 99, 150), one("1", "rescaled", 0, 2, 99, 150),
                one("causal", "kept", 0, 1, 100, 200), one("causal", "kept", 0, 2, 100, 200),
                one("causal", "kept", 512, 1, 100, 100), one("1", "kept", 512, 1, 102, 101)]

    def test_table(self):
        table = printed(length.print_all, self.lines())
        self.assertIn("| causal | none | 2 | 100.00 | 200.00 |", table)
        self.assertIn("| 1, re-scaled | none | -1.00 ± 0.00 * | -25.00 ± 0.00 * |", table)
        self.assertIn("| 1, as trained | 512 | +2.00 | +1.00 |", table)
        self.assertLess(table.index("| causal | none"), table.index("| 1, re-scaled | none"))

    def test_chart(self):
        picture = length.chart(self.lines())
        ElementTree.fromstring(picture)
        self.assertIn("RoPE, attention window: none", picture)
        self.assertIn("StableMask, re-scaled", picture)


class Sinks(Folder):

    def head(self, late):
        """16 rows; rows 0 and 1, before T/8, have a value that must not count."""
        rows = {"first_token": [1.0, 1.0, late, late], "heaviest_token": [1.0, 1.0, 0.6, 0.6],
                "entropy": [0.0, 0.0, 2.0, 2.0], "mask_ratio": [0.9, 0.9, 0.25, 0.25]}
        return {"by_position": rows}

    def line_of(self):
        block = {"point": "block", "norm_by_position": [40.0, 9.0, 2.0, 2.0], "norm_max": 50.0,
                 "channel_share": 0.1, "channel_share_max": 0.8}
        self.write("inspect.json", {
            "step": 100, "windows": 4, "position_edges": [0, 1, 2, 9, 16],
            "layers": [{"heads": [self.head(0.5), self.head(0.1)]}],
            "hidden": [{"point": "input"}, block, {"point": "output"}]})
        return self.line(sinks, "split=valid", "card=CPU", f"reports={self.run_folder}")

    def test_line(self):
        line = self.line_of()
        self.assertEqual(line["first_token"], [0.3])
        self.assertEqual(line["sinks"], [0.5])  # one of two heads has over 30 %
        self.assertEqual(line["largest_first_token"], [0.5])
        self.assertEqual((line["entropy"], line["mask_ratio"]), ([2.0], [0.25]))
        self.assertEqual((line["norm"], line["largest_norm"], line["first_norm"]),
                         ([2.0], [25.0], [20.0]))

    def test_mean_weighs_bins_by_their_rows(self):
        self.assertAlmostEqual(sinks.late_mean([9.0, 1.0, 4.0], [0, 2, 4, 16]), (2 + 48) / 14)

    def test_table_and_chart(self):
        line = self.line_of()
        masked = line | {"mask": "1", "first_token": [0.1], "sinks": [0.0]}
        early = line | {"step": 50}
        table = printed(sinks.print_all, [masked, early, line])
        self.assertIn("| RoPE | causal | 1 | 30.00 | 50.0 |", table)
        self.assertIn("|  | less causal |  | -20.00 | -50.0 |", table)
        self.assertIn("| RoPE | 1 | first token, % |  | 10.00 |", table)  # no early step
        ElementTree.fromstring(sinks.chart([masked, early, line]))


class Quantize(Folder):

    def test_line(self):
        self.write("test.json", {"lengths": [{"word_perplexity": 20.0, "word_count": 10}]})
        self.write("report", {"tokens": 12, "nll": {"none": 10 * math.log(20.0),
                                                    "int8 both": 10 * math.log(22.0)},
                              "outliers": [1.0] * 8})
        line = self.line(quantize, "split=test", f"report={self.run_folder / 'report'}")
        self.assertEqual(line["perplexity"], {"none": 20.0, "int8 both": 22.0})
        self.assertEqual(line["program"], 20.0)
        self.assertAlmostEqual(quantize.rise(line, "int8 both"), 10.0)

    def test_table_and_chart(self):
        def one(mask, seed, both):
            return RUN | {"mask": mask, "seed": seed, "split": "test",
                          "outliers": [1.0, 2.0, 3.0, 4.0, 9.0, 2.0, 3.0, 4.0],
                          "perplexity": {"none": 100.0, "int8 weights": 101.0, "int8 inputs": 101.0,
                                         "int8 both": both}}
        lines = [one("causal", 1, 110.0), one("causal", 2, 110.0), one("1", 1, 104.0),
                 one("1", 2, 104.0)]
        table = printed(quantize.print_all, lines)
        self.assertIn("| RoPE | 1 | 2 | 100.00 | +4.00 |", table)
        self.assertIn("|  | less causal |  |  | -6.00 ± 0.00 * |", table)
        self.assertIn("|  | perplexity to causal, % |  | +0.00 ± 0.00 | -5.45 ± 0.00 * |", table)
        self.assertIn("|  | less causal | +0.0 ± 0.0 |", table)
        self.assertIn("| RoPE | causal | 9.0 | 2.0 | 3.0 | 4.0 |", table)
        ElementTree.fromstring(quantize.chart(lines))


class Chart(unittest.TestCase):

    def test_ticks(self):
        self.assertEqual(chart.ticks(0.0, 10.0, False), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
        self.assertEqual(chart.ticks(0.5, 200.0, True), [1.0, 10.0, 100.0])
        self.assertEqual(chart.ticks(90.0, 520.0, True), [100.0, 200.0, 500.0])

    def test_places(self):
        panel = chart.Panel("a < b", "x", "y", [chart.Series("s", [(1.0, 10.0, 20.0, 40.0),
                                                                  (4.0, 20.0, 40.0, 80.0)])],
                            {1.0: "one", 4.0: "four"}, log_x=True, log_y=True)
        root = ElementTree.fromstring(chart.draw("title", [panel]))
        dots = [(float(dot.get("cx")), float(dot.get("cy")))
                for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
        span = chart.WIDTH / 1.1  # a margin of 5 % at both ends
        self.assertAlmostEqual(dots[1][0] - dots[0][0], span, delta=0.2)
        # A factor of 2 in a range of 8, each end 5 % wider.
        self.assertAlmostEqual(dots[0][1] - dots[1][1], chart.HEIGHT / 1.1 / 3, delta=0.2)
        self.assertIn("a < b", [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")])


if __name__ == "__main__":
    unittest.main()
