"""scripts/bench: the figures that scaling.py computes from traces and measurements.

    scaling_test.py FOLDER-OF-SCRIPTS
"""

import json
import random
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, sys.argv.pop(1))

import kill_process  # noqa: E402
import prediction  # noqa: E402
import scaling  # noqa: E402
import timeline  # noqa: E402

STEP = 10_000.0  # microseconds, of a mark


def event(name, begin, duration, category="kernel"):
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": duration}


def step_events(begin):
    """Computation in [0, 6000) and [6500, 9000); a reduction in [1000, 7000), a gather in
    [9000, 9500), of the step that begins here; idle at the end."""
    return [event(timeline.STEP, begin, STEP, "user_annotation"),
            event("nvjet_gemm", begin, 4000), event("stable_mask", begin + 3000, 3000),
            event("adamw_kernel", begin + 6500, 2500),
            event("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", begin + 1000, 6000),
            event("ncclDevKernel_AllGather_RING_LL", begin + 9000, 500),
            event("cudaGraphLaunch", begin, 50, "cuda_runtime")]


class Timeline(unittest.TestCase):

    def steps(self, events):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "160m-4.0.json"
            path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
            return timeline.load_steps(path), timeline.report(folder)

    def test_hidden_and_exposed(self):
        steps, lines = self.steps([e for i in range(3) for e in step_events(1e6 + i * STEP)])
        self.assertEqual(len(steps), 2)  # the first is left out
        for step in steps:
            figures = step.figures()
            self.assertAlmostEqual(figures["span"], 9.5)
            self.assertAlmostEqual(figures["computation"], 8.5)
            self.assertAlmostEqual(figures["communication"], 6.5)
            self.assertAlmostEqual(figures["ReduceScatter exposed"], 0.5)
            self.assertAlmostEqual(figures["AllGather exposed"], 0.5)
            self.assertAlmostEqual(figures["exposed"], 1.0)
            self.assertAlmostEqual(figures["idle"], 0.0)
        row = next(line for line in lines if line.startswith("| 160m"))
        self.assertIn("| 9.50 | 8.50 | 6.50 | 5.50 | 1.00 | 0.50 | 0.50 | 0.00 |", row)
        upper, lower = timeline.chart(steps[0])
        self.assertEqual(upper.count("A"), round(timeline.WIDTH * 2.5 / 9.5))
        self.assertEqual(lower.count("R"), round(timeline.WIDTH * 6 / 9.5))
        self.assertTrue(lower.endswith("G"))

    def test_lengths_equal_those_of_marked_microseconds(self):
        source = random.Random(7)
        for _ in range(50):
            intervals = [(begin, begin + source.randint(0, 30))
                         for begin in (source.randint(0, 200) for _ in range(12))]
            marked = {i for begin, end in intervals for i in range(begin, end)}
            self.assertEqual(timeline.length(intervals), len(marked))

    def test_trace_without_kernels_is_named(self):
        mark = event(timeline.STEP, 0, STEP, "user_annotation")
        steps, lines = self.steps([mark, mark])
        self.assertEqual(steps, [])
        self.assertIn("no kernels", "\n".join(lines))


def network(base=10e-6, hop=3e-6, bandwidth=300e9):
    return prediction.Network(base, hop, bandwidth)


def model():
    return prediction.Model(parameters=160_000_000, layers=12, vocabulary_matrix=38_000_000,
                            head_share=0.25, tokens=32768)


class Prediction(unittest.TestCase):

    def test_one_gpu_takes_computation_and_update(self):
        seconds = prediction.seconds_of_step(model(), 0.05, network(), network(), 1)
        update = prediction.UPDATE_BYTES * 160e6 / prediction.MEMORY
        self.assertAlmostEqual(seconds, 0.05 + update)

    def test_without_computation_the_collectives_follow_each_other(self):
        link = network()
        seconds = prediction.seconds_of_step(model(), 0.0, link, link, 8)
        update = prediction.UPDATE_BYTES * 160e6 / 8 / prediction.MEMORY
        serial = prediction.seconds_of_collectives(model(), link, link, 8)
        front = link.seconds(0, 8) + link.seconds(2 * model().vocabulary_matrix, 8)
        hidden = min(update, front)  # of the two that run beside each other the shorter one
        self.assertAlmostEqual(seconds, serial + link.seconds(16, 8) + update - hidden)

    def test_a_fast_network_hides_everything_but_ends(self):
        link = network(base=0, hop=0, bandwidth=1e18)
        seconds = prediction.seconds_of_step(model(), 0.05, link, link, 8)
        update = prediction.UPDATE_BYTES * 160e6 / 8 / prediction.MEMORY
        self.assertAlmostEqual(seconds, 0.05 + update)

    def test_fit_reproduces_the_measurement(self):
        link = network()
        for measured in (0.03, 0.06, 0.3):
            computation = prediction.fitted(model(), measured, link, link, 4)
            again = prediction.seconds_of_step(model(), computation, link, link, 4)
            self.assertAlmostEqual(again, measured)

    def test_network_from_two_measurements(self):
        truth = network(base=8e-6, hop=2e-6, bandwidth=350e9)
        runs = []
        for processes in (2, 4):
            entries = []
            for size in (2**16, 2**30):
                seconds = truth.seconds(size, processes)
                entries.append({"collective": "all_gather", "bytes": size,
                                "microseconds": 1e6 * seconds,
                                "bus_bytes_per_second":
                                    size * (processes - 1) / processes / seconds})
            runs.append({"processes": processes, "collectives": entries})
        found = prediction.network_of(runs, "all_gather")
        self.assertAlmostEqual(found.hop / truth.hop, 1, delta=0.05)
        self.assertAlmostEqual(found.base / truth.base, 1, delta=0.05)
        self.assertAlmostEqual(found.bandwidth / truth.bandwidth, 1, delta=0.01)


def figures(processes, speed, **more):
    return {"processes": processes, "device": "GPU", "timed_steps": 20, "vocabulary": 50304,
            "parameters": 162_000_000, "batch": 32 * processes, "context": 1024,
            "tokens_per_second": speed, "step_ms": 32.768e6 * processes / speed, "mfu": 0.5,
            "shard": "optimizer", "reduce_dtype": "fp32", "peak_memory_bytes": 2**30, **more}


class Tables(unittest.TestCase):

    def results(self, runs):
        with tempfile.TemporaryDirectory() as folder:
            lines = [json.dumps({"run": name, "figures": run}) for name, run in runs.items()]
            path = Path(folder) / "results.jsonl"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            return scaling.Results(Path(folder))

    def test_efficiency_is_over_the_sum_of_the_cards_used(self):
        results = self.results({
            "weak-160m-1-0": figures(1, 100.0), "weak-160m-1-1": figures(1, 90.0),
            "weak-160m-1-2": figures(1, 110.0), "weak-160m-1-3": figures(1, 100.0),
            "weak-160m-2": figures(2, 171.0), "weak-160m-4": figures(4, 380.0)})
        rows = [line.split(" | ") for line in scaling.weak(results) if line.startswith("| 160m")]
        self.assertEqual([row[1] for row in rows], ["1", "2", "4"])
        self.assertEqual([row[3] for row in rows], ["1.000", "0.900", "0.950"])
        self.assertEqual([row[4] for row in rows[1:]], ["0.950", "1.056"])

    def test_losses_that_differ_are_refused(self):
        losses = [4.0 - 0.1 * i for i in range(10)]
        near, far = [x + 5e-4 for x in losses], [*losses[:-1], losses[-1] + 2e-3]
        one = {"processes": 1, "shard": "optimizer", "losses": losses}
        for other, right in ((near, True), (far, False), (losses[:5], False)):
            results = self.results({"valid-1": one, "valid-4": {**one, "losses": other}})
            self.assertEqual(scaling.validate(results), right)


class Kill(unittest.TestCase):

    def test_the_victims_signal_and_the_others_ends(self):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            run.mkdir()
            (run / "metrics.jsonl").write_text('{"step": 5}\n{"step": 6}\n', encoding="utf-8")
            # Process 0 waits until process 1 is gone, as processes do that wait for each other.
            script = (
                "import os, sys, time\n"
                "run, here = sys.argv[1], 'pid-' + os.environ['RANK']\n"
                "with open(f'{run}/{here}.new', 'w') as file: file.write(str(os.getpid()))\n"
                "os.rename(f'{run}/{here}.new', f'{run}/{here}')\n"
                "if here == 'pid-1': time.sleep(60)\n"
                "while not os.path.exists(f'{run}/pid-1'): time.sleep(0.01)\n"
                "with open(f'{run}/metrics.jsonl', 'a') as file: file.write('{\"step\": 9}\\n')\n"
                "try:\n"
                "  while True:\n"
                "    os.kill(int(open(f'{run}/pid-1').read()), 0)\n"
                "    time.sleep(0.01)\n"
                "except ProcessLookupError: print('process 1 is lost')\n"
                "sys.exit(6)\n")
            arguments = kill_process.parse_arguments(
                ["--processes", "2", "--run", str(run), "--steps", "3", "--victim", "1",
                 "--timeout", "20", "--", sys.executable, "-c", script, str(run)])
            result = kill_process.experiment(arguments)
        self.assertEqual(result["exit_codes"], [6, -9])
        self.assertEqual(result["message"], "process 1 is lost")
        self.assertEqual((result["first_step"], result["last_step"]), (6, 9))
        self.assertEqual(len(result["seconds"]), 1)
        self.assertLess(result["seconds"][0], 10)


if __name__ == "__main__":
    unittest.main()
