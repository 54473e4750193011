"""Pictures of the mask that a config describes: pseudo scores P and pseudo mass log S.

The formulas are those of docs/stablemask.md: row i has a pseudo slot at each column j with
i < j <= N - 1, its score is P = p_base - gamma (j - i - 1), and S_i is the sum of exp(P) over them.
"""

import json
import math
from dataclasses import dataclass
from itertools import product

from figures import Control, Figure, axes, head_line, heatmap, rounded
from runs import Json, Run

# Cells of a picture of P along each side, and points of a curve.
CELLS, POINTS = 64, 256
# Scores below it add nothing to S and share a colour.
LOWEST_SCORE = -10.0


@dataclass(frozen=True)
class Mask:
    gamma: tuple[float, ...]  # one value a head
    p_base: tuple[float, ...]
    length: int | None  # N; None: infinite
    beyond_infinite: bool
    context: int

    def log_mass(self, head: int, i: int) -> float | None:
        """log S of row i; None: no pseudo slots."""
        slots = math.inf if self.length is None else self.length - 1 - i
        if self.length is not None and i >= self.length:
            slots = math.inf if self.beyond_infinite else 0
        gamma, p_base = self.gamma[head], self.p_base[head]
        if slots <= 0 or (gamma == 0 and math.isinf(slots)):
            return None
        if gamma == 0:
            return p_base + math.log(slots)
        return p_base + math.log(-math.expm1(-gamma * slots)) - math.log(-math.expm1(-gamma))

    def score(self, head: int, i: int, j: int) -> float | None:
        """P at row i and column j; None: no pseudo slot there."""
        if j <= i or (self.length is not None and j >= self.length):
            return None
        return self.p_base[head] - self.gamma[head] * (j - i - 1)


def slopes(heads: int) -> list[float]:
    """ALiBi's slope of each head."""
    power = 2 ** int(math.log2(heads))

    def geometric(h: int, count: int) -> float:
        return 2.0 ** (-8.0 * (h + 1) / count)

    return [geometric(h, power) if h < power else geometric(2 * (h - power), 2 * power)
            for h in range(heads)]


def mask_of(config: Json) -> Mask | None:
    """The mask of a run's resolved config; None: a plain causal mask, or no config."""
    if not config.get("model.stable_mask.enabled"):
        return None
    heads, context = int(config["model.heads"]), int(config["train.context"])
    gamma = config.get("model.stable_mask.gamma", "slopes")
    length = config.get("model.stable_mask.mask_length", context)
    fixed = {"infinite": None, "sequence": context, "context": context}
    return Mask(
        gamma=tuple(slopes(heads) if isinstance(gamma, str) else _per_head(gamma, heads)),
        p_base=tuple(_per_head(config.get("model.stable_mask.p_base", 0.0), heads)),
        length=fixed[length] if isinstance(length, str) else int(length),
        # Configs written before the field existed mean rows without pseudo slots.
        beyond_infinite=config.get("model.stable_mask.beyond", "none") == "infinite",
        context=context,
    )


def figures(runs: list[Run]) -> list[Figure]:
    """log S and P of each mask that the runs were configured with."""
    masks: dict[Mask, list[str]] = {}
    for run in runs:
        mask = mask_of(run.config)
        if mask is not None:
            masks.setdefault(mask, []).append(run.name)
    made = []
    for index, (mask, names) in enumerate(masks.items()):
        who = ", ".join(names)
        made += [_log_mass_figure(index, mask, who), _score_figure(index, mask, who)]
    return made


def _per_head(value: object, heads: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, list) else [float(str(value))]
    return values * heads if len(values) == 1 else values


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value, 5)


def _title(mask: Mask) -> str:
    length = "∞" if mask.length is None else mask.length
    return f"N = {length}"


def _log_mass_figure(index: int, mask: Mask, who: str) -> Figure:
    end = 2 * max(mask.context, mask.length or 0)
    rows = sorted({min(end - 1, round(k * (end - 1) / (POINTS - 1))) for k in range(POINTS)}
                  | ({mask.length - 2, mask.length - 1, mask.length} if mask.length else set()))
    rows = [i for i in rows if i >= 0]
    heads = len(mask.gamma)
    equal = len(set(zip(mask.gamma, mask.p_base))) == 1
    traces = [head_line("all heads" if equal else f"head {h}", h, heads,
                        [_rounded(mask.log_mass(h, i)) for i in rows], {}, x=rows)
              for h in range(1 if equal else heads)]
    layout = axes("position i (tokens)", "log S (nats)")
    return Figure(f"mass-{index}", f"Pseudo mass log S by position, {_title(mask)}",
                  f"As configured for {who}; gaps: rows without pseudo slots.", traces, layout)


def _score_figure(index: int, mask: Mask, who: str) -> Figure:
    side = mask.length or mask.context
    parts = {"end": list(range(max(0, side - CELLS), side)),
             "all": sorted({round(k * (side - 1) / (CELLS - 1)) for k in range(CELLS)})}
    heads = len(mask.gamma)
    traces = []
    for h, (part, cells) in product(range(heads), parts.items()):
        z = [[_rounded(mask.score(h, i, j)) for j in cells] for i in cells]
        lowest = max(LOWEST_SCORE, min([p for row in z for p in row if p is not None] + [-1e-3]))
        traces.append(heatmap(z, "P (nats)", x=cells, y=cells,
                              meta={"when": {"head": str(h), "part": part}},
                              zmin=lowest, zmax=max(mask.p_base[h], lowest + 1e-3),
                              hovertemplate="row %{y}, column %{x}: P = %{z}<extra></extra>"))
    layout = axes("column j (tokens)", "row i (tokens)", yaxis={"autorange": "reversed"})
    controls = [
        Control("head", "head", [(str(h), _head_text(mask, h)) for h in range(heads)]),
        Control("part", "part", [("end", f"last {CELLS} rows"), ("all", "all rows")]),
    ]
    return Figure(f"score-{index}", f"Pseudo scores P, {_title(mask)}",
                  f"As configured for {who}. Empty: no pseudo slot. Below {LOWEST_SCORE:g}: one "
                  "colour.",
                  traces, layout, controls)


def _head_text(mask: Mask, head: int) -> str:
    return f"{head}: γ {mask.gamma[head]:.4g}, p_base {mask.p_base[head]:.4g}"


def describe(config: Json) -> str:
    """For tables: the mask in a few words."""
    if not config:
        return "–"
    if not config.get("model.stable_mask.enabled"):
        return "causal"
    gamma = json.dumps(config.get("model.stable_mask.gamma")).strip('"')
    return f"γ {gamma}, N {config.get('model.stable_mask.mask_length')}"
