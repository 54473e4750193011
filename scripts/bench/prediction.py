"""Efficiency on more GPUs than were measured, computed from measured times and bandwidths.

A step is simulated on two streams, as the program runs it: each bucket of weights is all-gathered
while the forward computes with the one before, and waits for it; the backward, behind which each
bucket's gradients are reduce-scattered, head first; the norm; the update of the own part, beside
which vectors and embedding are gathered.

    seconds of a collective over n GPUs of S bytes = latency(n) + S (n - 1) / n / bandwidth(n)

Inside one node both are those measured. Over several nodes NCCL's ring passes every GPU:
latency(n) = base + (hops inside nodes) · hop + (nodes) · NETWORK_HOP, and the bandwidth is the
smaller one of that measured and of a node's network adapters together.
"""
import statistics
from dataclasses import dataclass

GPUS_A_NODE = 8
NETWORK = 0.9 * 400e9 / 8  # bytes/s a GPU: 90 % of an adapter of 400 Gb/s
NETWORK_HOP = 15e-6  # seconds
MEMORY = 3.0e12  # bytes/s, of a GPU
UPDATE_BYTES = 28  # read and written for a parameter by AdamW
NUMBERS = (8, 64, 256, 1024)
SHOWN = (64, 1024)  # of these also the time of the collectives


@dataclass
class Model:
    """What the simulation needs to know of a model and its batch."""
    parameters: int
    layers: int
    vocabulary_matrix: int  # elements of the embedding, and of the head
    head_share: float  # of the floating-point operations of forward and backward
    tokens: int  # a GPU and step

    @property
    def block(self):
        return (self.parameters - 2 * self.vocabulary_matrix) / self.layers

    @property
    def buckets(self):
        """Elements of each, in the order of the forward: vectors, which are few, embedding, blocks,
        head."""
        return [0, self.vocabulary_matrix, *[self.block] * self.layers, self.vocabulary_matrix]


SHAPES = {  # layers, channels
    "71m": (6, 512), "160m": (12, 768), "400m": (24, 1024), "1.4b": (24, 2048)}


def model_of(name, run):
    layers, channels = SHAPES[name]
    matrix = run["vocabulary"] * channels
    multiplied = run["parameters"] - matrix + layers * channels * run["context"]  # as for MFU
    return Model(run["parameters"], layers, matrix, matrix / multiplied,
                 run["batch"] // run["processes"] * run["context"])


@dataclass
class Network:
    """Of one node, from measurements of one collective with n GPUs."""
    base: float  # seconds
    hop: float  # seconds
    bandwidth: float  # bytes/s

    def seconds(self, size, processes):
        if processes == 1:
            return 0.0
        nodes = -(-processes // GPUS_A_NODE)
        if nodes == 1:
            latency = self.base + (processes - 1) * self.hop
        else:
            latency = self.base + (processes - nodes) * self.hop + nodes * NETWORK_HOP
        bandwidth = self.bandwidth if nodes == 1 else min(self.bandwidth, GPUS_A_NODE * NETWORK)
        return latency + size * (processes - 1) / processes / bandwidth


def network_of(runs, collective):
    """From `bench collectives` with one or more numbers of processes."""
    latencies, bandwidth = {}, 0.0
    for run in runs:
        entries = [entry for entry in run["collectives"] if entry["collective"] == collective]
        smallest = min(entries, key=lambda entry: entry["bytes"])
        latencies[run["processes"]] = smallest["microseconds"] * 1e-6
        bandwidth = max(entries, key=lambda entry: entry["bytes"])["bus_bytes_per_second"]
    few, many = min(latencies), max(latencies)
    if few == many:
        hop = latencies[many] / many
    else:
        hop = max((latencies[many] - latencies[few]) / (many - few), 0.0)
    return Network(max(latencies[many] - (many - 1) * hop, 0.0), hop, bandwidth)


def seconds_of_step(model, computation, gather, reduce, processes):
    """`computation`: forward and backward of one GPU, without the update."""
    head = computation * model.head_share
    forward = (computation - head) / 3 / model.layers  # a block's; its backward takes twice as long
    blocks = range(2, 2 + model.layers)  # among the buckets

    front = sum(gather.seconds(2 * elements, processes)  # beside the update, for the next step
                for elements in model.buckets[:blocks.start])
    weights = [gather.seconds(2 * elements, processes) for elements in model.buckets[blocks.start:]]
    now, gathered = 0.0, weights[0]
    for index, following in enumerate([*weights[1:], 0.0]):
        now = max(now, gathered)
        gathered = now + following
        if blocks.start + index in blocks:
            now += forward
    now += head  # with its gradients: its reduction overlaps with the whole backward
    communicated = now
    for index, elements in reversed(list(enumerate(model.buckets))):  # fp32 gradients
        if index in blocks:
            now += 2 * forward
        communicated = max(communicated, now) + reduce.seconds(4 * elements, processes)
    update = UPDATE_BYTES * model.parameters / processes / MEMORY
    return max(now, communicated) + reduce.seconds(16, processes) + max(update, front)


def fitted(model, measured, gather, reduce, processes):
    """The seconds of computation with which the simulated step takes as long as measured."""
    low, high = 0.0, measured
    for _ in range(60):
        middle = (low + high) / 2
        if seconds_of_step(model, middle, gather, reduce, processes) < measured:
            low = middle
        else:
            high = middle
    return low


def seconds_of_collectives(model, gather, reduce, processes):
    """All collectives of a step, one after the other."""
    return sum(gather.seconds(2 * size, processes) + reduce.seconds(4 * size, processes)
               for size in model.buckets)


def row(name, singles, multiple, gather, reduce):
    """`multiple`: {processes: figures} of weak scaling; the largest number sets the computation's
    speed beside communication. Without any it is that of one GPU."""
    one = statistics.mean(run["batch"] * run["context"] / run["tokens_per_second"]
                          for run in singles)
    model = model_of(name, singles[0])
    most = max(multiple, default=1)
    measured = 1e-3 * multiple[most]["step_ms"] if multiple else one
    computation = fitted(model, measured, gather, reduce, most)
    cells = [f"{one / seconds_of_step(model, computation, gather, reduce, n):.3f}" for n in NUMBERS]
    cells += [f"{1e3 * seconds_of_collectives(model, gather, reduce, n):.0f}" for n in SHOWN]
    return f"| {name} | " + " | ".join(cells) + f" | {1e3 * one:.0f} |"


def report(results):
    """Markdown; nothing without measurements of the collectives and of single GPUs."""
    runs = [run for name, run in results.runs.items() if name.startswith("collectives-")]
    if not runs:
        return []
    gather, reduce = network_of(runs, "all_gather"), network_of(runs, "reduce_scatter")
    rows = [row(name, singles, results.by_number(f"weak-{name}"), gather, reduce)
            for name in SHAPES if (singles := results.singles(f"weak-{name}"))]
    if not rows:
        return []
    header = [f"{n:,} GPUs" for n in NUMBERS] + [f"communication at {n:,}, ms" for n in SHOWN]
    return ["| model | " + " | ".join(header) + " | step on 1 GPU, ms |",
            "| --- |" + " ---: |" * (len(header) + 1), *rows, "",
            f"All-gather {gather.bandwidth / 1e9:.0f} GB/s, {1e6 * gather.base:.0f} + "
            f"{1e6 * gather.hop:.1f} (n - 1) us; reduce-scatter {reduce.bandwidth / 1e9:.0f} GB/s, "
            f"{1e6 * reduce.base:.0f} + {1e6 * reduce.hop:.1f} (n - 1) us.", ""]
