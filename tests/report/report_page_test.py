"""Builds pages of scripts/report.sh from runs that it writes and looks at them in headless
Chromium: both widths, both colour schemes. Ends with 77 and a reason where Chromium or the plotting
library is not installed (scripts/setup.sh --dev installs both).

    report_page_test.py SCRIPT [--screenshots DIR]     --screenshots: keeps pictures to look at
"""

import argparse
import base64
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

SKIPPED = 77
HERE = Path(__file__).parent
WIDE, NARROW = 1280, 400
BAND = 8  # windows of the inspection's text
LAYERS, HEADS, CONTEXT = 2, 2, 64
script = Path()
screenshots: Path | None = None

Json = dict[str, Any]


def config(seed: int, **mask: Any) -> Json:
    return {
        "version": 2,
        "model": {"heads": HEADS, "position": "alibi",
                  "stable_mask": {"enabled": True, "gamma": "slopes", "p_base": 0.0,
                                  "mask_length": CONTEXT, "beyond": "infinite", **mask}},
        "train": {"out": f"runs/{seed}", "seed": seed, "steps": 100, "context": CONTEXT},
    }


def metrics(steps: range, offset: float, **more: Any) -> list[Json]:
    """Lines as the program writes them; validated every 50 steps."""
    lines = []
    for step in steps:
        line = {"step": step, "tokens": 256 * step, "loss": 4 + offset - step / 100,
                "grad_norm": 1.0, "lr": 1e-3, "skipped": 0, "tokens_per_second": 1000.0 + step,
                "peak_memory_bytes": 2**30, "seconds": 36.0 * step, **more}
        if step % 50 == 0:
            line |= {"valid_loss": 5 + offset - step / 100, "valid_word_ppl": 90.0}
        lines.append(line)
    return lines


def write_run(folder: Path, settings: Json | None, lines: list[Json], tail: str = "") -> Path:
    folder.mkdir(parents=True)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(text)
    return folder


def write_inspection(folder: Path) -> None:
    def head(l: int, h: int) -> Json:
        values = [0.1 + 0.1 * l + 0.2 * h + 0.01 * b for b in range(BAND)]
        names = ("mask_ratio", "entropy", "first_token", "heaviest_token")
        return {"gamma": 0.5, "p_base": 0.0, "log_mass": [0.5] * (BAND - 1) + [None],
                **{name: values[0] for name in names},
                "by_position": {name: values for name in names}}

    def attention(h: int) -> Json:
        rows = [[0.25, 0.5, 0.125], [0.5, 0.25, 0.125], [0.0625, 0.5, 0.25]]
        return {"weights": rows if h == 0 else rows[::-1], "rest": [0.125, 0.125, 0.1875]}

    point = {"norm": 1.0, "norm_max": 5.0, "norm_max_position": 0, "norm_by_position": [1.0] * BAND,
             "channel_share": 0.1, "channel_share_max": 0.5, "top_channel": 1,
             "top_channel_share": 0.2}
    points = [{"point": "input"}] + [{"point": "block", "layer": l} for l in range(LAYERS)]
    folder.mkdir()
    (folder / "inspect.json").write_text(json.dumps({
        "version": 1, "checkpoint": "c", "step": 100, "data": "d", "tokenizer_sha256": "",
        "model": {}, "context": CONTEXT, "window": CONTEXT, "windows": 3,
        "position_edges": [8 * b for b in range(BAND + 1)],
        "layers": [{"heads": [head(l, h) for h in range(HEADS)]} for l in range(LAYERS)],
        "hidden": [{**where, **point} for where in points + [{"point": "output"}]],
        "maps": "maps.json"}))
    (folder / "maps.json").write_text(json.dumps({
        "version": 1, "tokens": [2, 7, 9], "texts": ["</s>", " </script><b>", " ✓"],
        "layers": [[attention(h) for h in range(HEADS)] for _ in range(LAYERS)]}))


def write_evaluation(path: Path, checkpoint: Path) -> None:
    lengths = [{"window": n, "stride": n, "nll": 100 * math.log(n), "tokens": 100,
                "token_perplexity": float(n), "word_perplexity": 2.0 * n} for n in (64, 256)]
    path.write_text(json.dumps({
        "checkpoint": str(checkpoint / "checkpoints/step-00000100"), "data": "test.shard",
        "context": CONTEXT, "attention_window": 0,
        "mask": {"enabled": True, "gamma": "slopes", "p_base": 0.0, "mask_length": CONTEXT,
                 "beyond": "infinite", "learnable": False}, "lengths": lengths}))


def report(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True,
                          check=False)


def figures_of(page: Path) -> dict[str, Json]:
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>',
                      page.read_text(), re.DOTALL)
    assert found is not None
    return {figure["key"]: figure for figure in json.loads(found[1])}


def chromium(folder: Path, dark: bool, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Without a network: no name resolves."""
    return subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr",
         f"--window-size={WIDE},2000", "--virtual-time-budget=60000", *options, url],
        capture_output=True, text=True, timeout=240, check=True)


def look(page: Path, folder: Path, dark: bool) -> tuple[dict[int, Json], list[str]]:
    """What probe.js sees at each width, and the lines of the browser's console."""
    probed = folder / "probed.html"
    listen = ("<script>window.reportProblems = [];"
              "addEventListener('error', (e) => reportProblems.push(String(e.message)), true);"
              "for (const kind of ['error', 'warn']) { const old = console[kind];"
              "console[kind] = (...a) => { reportProblems.push(a.join(' ')); old(...a); }; }"
              "</script>")
    probe = (HERE / "probe.js").read_text()
    text = page.read_text().replace("<head>", "<head>" + listen, 1)
    end = text.rindex("</body>")
    probed.write_text(f"{text[:end]}<script>{probe}</script>{text[end:]}")
    # A window is never narrower than 500 pixels; a frame is.
    frames = "".join(f'<iframe src="{probed.as_uri()}" style="width:{width}px;height:900px;'
                     'border:0"></iframe>' for width in (WIDE, NARROW))
    outer = folder / "frames.html"
    outer.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}<pre></pre><script>"
                     "const all = []; addEventListener('message', (e) => { all.push(e.data);"
                     "document.querySelector('pre').textContent = JSON.stringify(all); });"
                     "</script>")
    done = chromium(folder, dark, outer.as_uri(), "--dump-dom")
    result = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert result is not None and result[1], f"nothing was seen: {console}"
    seen = {found["width"]: found for found in json.loads(html.unescape(result[1]))}
    return seen, console


def take_pictures(page: Path, folder: Path, dark: bool, target: Path) -> None:
    for width in (WIDE, NARROW):
        frame = folder / "frame.html"
        frame.write_text('<!doctype html><body style="margin:0">'
                         f'<iframe src="{page.as_uri()}" style="width:{width}px;height:7000px;'
                         'border:0"></iframe>')
        name = target / f"report-{width}-{'dark' if dark else 'light'}.png"
        chromium(folder, dark, frame.as_uri(), f"--screenshot={name}",
                 f"--window-size={max(width, 500)},7000")


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2, of #rrggbb or rgb(r, g, b)."""
    if color.startswith("#"):
        parts = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
    else:
        parts = [int(part) for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# Titles of the axes of every figure of the full page.
AXES = {
    "curve-loss": ("optimizer steps", "loss (nats per token)"),
    "curve-valid_loss": ("optimizer steps", "loss (nats per token)"),
    "curve-valid_word_ppl": ("optimizer steps", "perplexity per word (1)"),
    "curve-lr": ("optimizer steps", "learning rate (1)"),
    "curve-grad_norm": ("optimizer steps", "global L2 norm (1)"),
    "curve-tokens_per_second": ("optimizer steps", "tokens per second"),
    "curve-peak_memory_bytes": ("optimizer steps", "peak memory (GiB)"),
    "curve-mfu": ("optimizer steps", "MFU (% of bf16 peak)"),
    "extrapolation": ("window length (tokens)", "perplexity per word (1)"),
    "mass-0": ("position i (tokens)", "log S (nats)"),
    "score-0": ("column j (tokens)", "row i (tokens)"),
    "inspect-0-mask_ratio": ("head (index)", "layer (index)"),
    "inspect-0-first_token": ("head (index)", "layer (index)"),
    "inspect-0-heaviest_token": ("head (index)", "layer (index)"),
    "inspect-0-entropy": ("head (index)", "layer (index)"),
    "inspect-0-position": ("position + 1 (tokens)", "mask ratio (1)"),
    "inspect-0-hidden": ("point in the model", "L2 norm of a token's vector (1)"),
    "inspect-0-map": ("column: token or pseudo slot (position)", "row: query (position)"),
    "inspect-0-share": ("row: query (position)", "share of the weight (1)"),
}
COLORBARS = {
    "score-0": "P (nats)",
    "inspect-0-mask_ratio": "mean mask ratio (1)",
    "inspect-0-first_token": "mean weight (1)",
    "inspect-0-heaviest_token": "mean weight (1)",
    "inspect-0-entropy": "mean entropy (nats)",
    "inspect-0-map": "weight (1)",
}


class Base(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def page(self, *arguments: Any) -> Path:
        out = self.folder / "report.html"
        done = report(*arguments, "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out

    def two_seeds(self) -> tuple[Path, Path]:
        """Two seeds of one config; the second is still running, its last line incomplete."""
        first = write_run(self.folder / "runs/slopes-1", config(1),
                          metrics(range(10, 101, 10), 0.0, mfu=0.4))
        second = write_run(self.folder / "runs/slopes-2", config(2),
                           metrics(range(10, 61, 10), 0.5, mfu=0.5), '{"step": 70, "lo')
        return first, second


class Browser(Base):
    def test_every_figure_at_both_widths_in_both_schemes(self) -> None:
        first, second = self.two_seeds()
        write_inspection(first / "inspect")
        write_evaluation(first / "eval-lengths.json", first)
        page = self.page(first, second)
        for dark in (False, True):
            if screenshots is not None:
                take_pictures(page, self.folder, dark, screenshots)
            seen, console = look(page, self.folder, dark)
            self.assertEqual(console, [])
            self.assertEqual(sorted(seen), [NARROW, WIDE])
            for width, found in seen.items():
                with self.subTest(dark=dark, width=width):
                    self.check_page(found, dark)

    def check_page(self, found: Json, dark: bool) -> None:
        self.assertEqual(found["problems"], [])
        self.assertEqual(len(found["first"]), len(AXES))
        self.assertEqual(found["resources"], [], "the page loads something")
        self.assertLessEqual(found["scroll"], found["width"], "the page scrolls sideways")
        self.assertEqual(found["dark"], dark)
        self.assertEqual(luminance(found["background"]) < 0.1, dark)
        self.assertGreater(contrast(found["background"], found["text"]), 7)
        self.assertEqual({f["key"]: (f["xtitle"], f["ytitle"]) for f in found["first"]}, AXES)
        for moment in ("first", "second", "third"):
            for figure in found[moment]:
                with self.subTest(moment=moment, figure=figure["key"]):
                    self.check_figure(figure, found["text"])
        curves = {f["key"]: f for f in found["second"]}
        self.assertEqual(curves["curve-loss"]["xtitle"], "training tokens")
        self.assertEqual(curves["curve-loss"]["legend"], ["slopes-1", "slopes-2"])
        first = {f["key"]: f for f in found["first"]}
        self.assertEqual(first["curve-loss"]["legend"], ["slopes (mean of 2)"])
        last = {f["key"]: f for f in found["third"]}
        self.assertEqual(last["curve-loss"]["xtitle"], "wall-clock time (hours)")
        self.assertEqual(last["inspect-0-position"]["ytitle"], "log S (nats)")
        self.assertEqual(last["inspect-0-hidden"]["ytitle"], "share of the squared norm (1)")

    def check_figure(self, figure: Json, ink: str) -> None:
        self.assertTrue(figure["title"])
        self.assertTrue(figure["xtitle"] and figure["ytitle"])
        self.assertEqual(figure["colorbar"], COLORBARS.get(figure["key"], ""))
        self.assertNotEqual(bool(figure["legend"]), bool(figure["colorbar"]), "no legend")
        self.assertGreater(figure["marks"], 0)
        self.assertTrue(figure["inside"], "a title or the legend is cut off")
        self.assertFalse(figure["overlap"], "the legend covers the axis' title")
        self.assertGreater(figure["height"], 100)
        self.assertEqual(figure["ink"], ink)


class Data(Base):
    def test_seeds_are_averaged_at_their_common_steps(self) -> None:
        figures = figures_of(self.page(*self.two_seeds()))
        traces = figures["curve-loss"]["data"]
        mean = [t for t in traces if t["meta"]["when"] == {"seeds": "mean"}]
        band, line = mean
        self.assertEqual(line["meta"]["x"]["step"], [10, 20, 30, 40, 50, 60])
        self.assertEqual(line["meta"]["x"]["tokens"][-1], 60 * 256)
        self.assertEqual(line["meta"]["x"]["hours"][-1], 0.6)
        for step, value in zip(line["meta"]["x"]["step"], line["y"]):
            self.assertAlmostEqual(value, 4.25 - step / 100, places=5)
        self.assertAlmostEqual(band["y"][0], 4.4)   # highest at step 10
        self.assertAlmostEqual(band["y"][-1], 3.9)  # lowest at step 10
        single = [t for t in traces if t["meta"]["when"] == {"seeds": "single"}]
        self.assertEqual([len(t["y"]) for t in single], [10, 6])

    def test_other_differences_are_not_averaged(self) -> None:
        one = write_run(self.folder / "a", config(1), metrics(range(10, 31, 10), 0.0))
        two = write_run(self.folder / "b", config(2, gamma=1.0), metrics(range(10, 31, 10), 0.0))
        page = self.page(one, two)
        names = [t["name"] for t in figures_of(page)["curve-loss"]["data"]]
        self.assertEqual(names, ["a", "b"])
        rows = re.findall(r"<tr><td>([a-z_.]+)</td><td>([^<]*)</td><td>([^<]*)</td></tr>",
                          page.read_text())
        self.assertEqual(rows, [("model.stable_mask.gamma", "slopes", "1.0"),
                                ("train.seed", "1", "2")])

    def test_final_figures(self) -> None:
        text = self.page(*self.two_seeds()).read_text()
        self.assertRegex(text, r"<td>slopes-1</td><td>done</td><td>γ slopes, N 64</td>"
                               r".*>100 / 100<.*>25,600<.*>3.0000<.*>4.0000<.*>100<.*>90.00<"
                               r".*>1,055<.*>1.00<")
        self.assertRegex(text, r"<td>slopes-2</td><td>open</td>.*>60 / 100<.*>3.9000<.*>5.0000<")

    def test_mass_and_scores_are_those_of_the_literal_sum(self) -> None:
        figures = figures_of(self.page(*self.two_seeds()))
        slopes = [2.0**-4, 2.0**-8]
        for gamma, trace in zip(slopes, figures["mass-0"]["data"]):
            self.assertIn(2 * CONTEXT - 1, trace["x"])
            for i, value in zip(trace["x"], trace["y"]):
                n = CONTEXT if i < CONTEXT else 100_000
                mass = sum(math.exp(-gamma * (j - i - 1)) for j in range(i + 1, n))
                if mass == 0:
                    self.assertIsNone(value)
                else:
                    self.assertAlmostEqual(value, math.log(mass), places=3)
        score = figures["score-0"]["data"][0]
        row, column = score["y"].index(3), score["x"].index(20)
        self.assertAlmostEqual(score["z"][row][column], -16 * slopes[0])
        self.assertIsNone(score["z"][row][score["x"].index(3)])

    def test_attention_map_keeps_the_weights(self) -> None:
        first, _ = self.two_seeds()
        write_inspection(self.folder / "elsewhere")
        figures = figures_of(self.page(first, "--inspect", self.folder / "elsewhere"))
        codes = list(base64.b64decode(figures["inspect-0-map"]["data"][0]["meta"]["codes"]))
        weights = [10 ** ((code - 255) * 4 / 254) for code in codes]
        expected = [0.25, 0.5, 0.125, 0.5, 0.25, 0.125, 0.0625, 0.5, 0.25]
        for weight, value in zip(weights, expected):
            self.assertLess(abs(weight / value - 1), 0.02)
        share = figures["inspect-0-share"]["data"]
        self.assertEqual([t["y"] for t in share[:3]],
                         [[0.25, 0.75, 0.812], [0.625, 0.125, 0], [0.125, 0.125, 0.1875]])

    def test_evaluations_of_other_runs_and_of_one_window(self) -> None:
        first, _ = self.two_seeds()
        write_evaluation(self.folder / "other.json", self.folder / "gone")
        (first / "eval.json").write_text(json.dumps({
            "nll": 50.0, "tokens": 25, "token_perplexity": 7.39, "word_perplexity": 33.0,
            "checkpoint": "x", "data": "test.shard", "window": 64, "stride": 16,
            "mask": "mask length 64"}))
        page = self.page(first, "--eval", self.folder / "other.json")
        trace, = figures_of(page)["extrapolation"]["data"]
        self.assertEqual((trace["name"], trace["x"], trace["y"]), ("other", [64, 256], [128, 512]))
        text = page.read_text()
        self.assertRegex(text, r"<td>slopes-1</td><td>test.shard</td><td>mask length 64</td>"
                               r".*>64 \(training length\)<.*>16<.*>2.0000<.*>7.39<.*>33.00<")

    def test_evaluations_of_seeds_are_averaged(self) -> None:
        runs = self.two_seeds()
        for run, perplexities in zip(runs, ((30.0, 40.0), (34.0, 50.0))):
            (run / "eval.json").write_text(json.dumps({
                "checkpoint": str(run), "data": "test.shard", "mask": "causal", "lengths": [
                    {"nll": 1.0, "tokens": 1, "word_perplexity": value, "window": window,
                     "stride": window} for window, value in zip((64, 256), perplexities)]}))
        trace, = figures_of(self.page(*runs))["extrapolation"]["data"]
        self.assertEqual((trace["name"], trace["x"], trace["y"]),
                         ("slopes (mean of 2)", [64, 256], [32, 45]))

    def test_texts_of_one_name_are_told_apart(self) -> None:
        first, _ = self.two_seeds()
        for folder, perplexity in (("a", 3.5), ("b", 4.5)):
            (first / f"eval-{folder}.json").write_text(json.dumps({
                "nll": 1.0, "tokens": 1, "word_perplexity": perplexity, "window": 64, "stride": 64,
                "checkpoint": str(first), "data": f"/texts/{folder}/test.shard"}))
        page = self.page(first)
        self.assertNotIn("extrapolation", figures_of(page))  # one length: no curve
        for folder, perplexity in (("a", "3.50"), ("b", "4.50")):
            self.assertRegex(page.read_text(), rf"<td>{folder}/test.shard</td>.*>{perplexity}<")

    def test_a_run_of_one_line_without_numbers(self) -> None:
        line = {"step": 1, "tokens": 5, "loss": None, "grad_norm": None, "lr": 1e-3}
        page = self.page(write_run(self.folder / "one", config(1, enabled=False), [line]))
        self.assertEqual(list(figures_of(page)), ["curve-lr"])
        self.assertEqual(figures_of(page)["curve-lr"]["data"][0]["mode"], "lines+markers")

    def test_long_runs_are_thinned_and_keep_their_spikes(self) -> None:
        lines = metrics(range(1, 20_001), 0.0)
        lines[12_345] |= {"loss": 3.0, "loss_mean": 300.0}
        page = self.page(write_run(self.folder / "long", config(1), lines))
        traces = figures_of(page)["curve-loss"]["data"]
        self.assertEqual([t["meta"]["when"]["curves"] for t in traces], ["raw", "smooth"])
        trace = traces[0]
        self.assertLess(len(trace["y"]), 1100)
        self.assertEqual(max(trace["y"]), 300.0)
        self.assertEqual(trace["meta"]["x"]["step"][-1], 20_000)
        steps = trace["meta"]["x"]["step"]
        self.assertEqual(steps, sorted(steps))

    def test_noisy_curves_are_smoothed_by_a_running_mean(self) -> None:
        lines = metrics(range(1, 1001), 0.0)
        for i, line in enumerate(lines):
            line["loss"] = 2.0 + i % 7 + i / 100
        page = self.page(write_run(self.folder / "noisy", config(1), lines))
        smooth = figures_of(page)["curve-loss"]["data"][1]
        self.assertLessEqual(len(smooth["y"]), 260)
        for step, value in zip(smooth["meta"]["x"]["step"], smooth["y"]):
            near = [x["loss"] for x in lines if abs(x["step"] - step) <= 10]
            self.assertAlmostEqual(value, sum(near) / len(near), places=3)
        self.assertEqual(len(figures_of(page)["curve-lr"]["data"]), 1)

    def test_colours_stand_out(self) -> None:
        page = self.page(*self.two_seeds())
        panels = re.findall(r"--panel: (#[0-9a-f]{6})", page.read_text())
        text = (script.parent / "report/figures.py").read_text()
        pairs = re.findall(r'\("(#[0-9a-f]{6})", "(#[0-9a-f]{6})"\),\n', text)
        self.assertEqual(len(pairs), 6)
        pairs += [t["meta"]["colors"] for t in figures_of(page)["mass-0"]["data"]]
        for pair in pairs:
            for color, panel in zip(pair, panels):
                self.assertGreaterEqual(contrast(color, panel), 3, (color, panel))


class Errors(Base):
    def refused(self, code: int, message: str, *arguments: Any) -> None:
        done = report(*arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn(message, done.stderr)

    def test_folders_that_are_no_runs(self) -> None:
        out = self.folder / "report.html"
        run = write_run(self.folder / "runs/a", config(1), metrics(range(10, 21, 10), 0.0))
        empty = write_run(self.folder / "empty", config(1), [], '{"step": 1')
        self.refused(3, "runs: is no run, it has no metrics.jsonl; it holds runs, name them: a",
                     run.parent, "--out", out)
        self.refused(3, "none: is no folder", self.folder / "none", "--out", out)
        self.refused(3, "empty: has no metrics yet", empty, "--out", out)
        self.refused(3, "has no inspect.json", run, "--inspect", empty, "--out", out)
        (run / "eval.json").write_text("{")
        self.refused(3, "eval.json: is no report of an evaluation", run, "--out", out)
        self.assertFalse(out.exists())

    def test_damaged_inspections(self) -> None:
        run, _ = self.two_seeds()
        write_inspection(run / "inspect")
        path = run / "inspect/inspect.json"
        values = json.loads(path.read_text())
        out = self.folder / "report.html"
        path.write_text(json.dumps({**values, "version": 9}))
        self.refused(3, "inspect.json: version 9, this program reads 1", run, "--out", out)
        path.write_text(json.dumps({**values, "hidden": [{"point": "input"}]}))
        self.refused(3, "not as stablemask inspect writes it (KeyError: 'norm')", run, "--out", out)

    def test_command_lines(self) -> None:
        run = write_run(self.folder / "a", config(1), metrics(range(10, 21, 10), 0.0))
        self.refused(2, "no folder", run, "--out", self.folder / "none/report.html")
        self.refused(2, "is a folder; name a file", run, "--out", self.folder)
        self.refused(2, "name a file", run, "--out", "-")
        evaluation = self.folder / "evaluation.json"
        evaluation.write_text("{}")
        self.refused(2, "is read for the page", run, "--eval", evaluation, "--out", evaluation)
        self.refused(2, "unrecognized arguments: --oout", run, "--oout", "x")
        if os.geteuid() != 0:
            os.chmod(self.folder, 0o500)
            self.refused(2, "cannot be written", run, "--out", self.folder / "report.html")
            os.chmod(self.folder, 0o700)

    def test_links_and_pipes_stay(self) -> None:
        run = write_run(self.folder / "a", config(1), metrics(range(10, 21, 10), 0.0))
        link, pipe = self.folder / "link.html", self.folder / "pipe"
        (self.folder / "far").mkdir()
        link.symlink_to("far/page.html")
        self.assertEqual(report(run, "--out", link).returncode, 0)
        self.assertTrue(link.is_symlink())
        page = (self.folder / "far/page.html").read_bytes()
        self.assertIn(b"curve-loss", page)
        os.mkfifo(pipe)
        read = self.folder / "read.html"
        with open(read, "wb") as file, subprocess.Popen(["cat", pipe], stdout=file):
            self.assertEqual(report(run, "--out", pipe).returncode, 0)
        minute = rb"\d\d:\d\d UTC"  # the two pages may be of different ones
        self.assertEqual(re.sub(minute, b"", read.read_bytes()), re.sub(minute, b"", page))
        self.assertTrue(pipe.is_fifo())
        self.assertEqual(os.listdir(self.folder / "far"), ["page.html"])

    def test_a_run_without_a_config_is_shown(self) -> None:
        run = write_run(self.folder / "a", None, metrics(range(10, 21, 10), 0.0))
        out = self.folder / "report.html"
        done = report(run, "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("the run is shown without its config", done.stderr)
        self.assertIn("curve-loss", figures_of(out))


def skip_reason() -> str:
    cache = Path(os.environ.get("STABLEMASK_CACHE", Path.home() / ".cache/stablemask"))
    if not (cache / "report-venv/complete-requirements.txt").is_file():
        return "no plotting library; scripts/report.sh --install installs it"
    if shutil.which("chromium") is None:
        return "no chromium; scripts/setup.sh --dev installs it"
    return ""


def main() -> int:
    global script, screenshots
    parser = argparse.ArgumentParser()
    parser.add_argument("script", type=Path)
    parser.add_argument("--screenshots", type=Path)
    options, rest = parser.parse_known_args()
    script, screenshots = options.script.resolve(), options.screenshots
    reason = skip_reason()
    if reason:
        print(f"report_page: Skipped\n{reason}")
        return SKIPPED
    program = unittest.main(argv=[sys.argv[0], *rest], exit=False)
    return 0 if program.result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
