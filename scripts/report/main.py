"""Makes the page; scripts/report.sh has the manual."""

import argparse
import json
import os
import secrets
import sys
from pathlib import Path
from typing import NoReturn

import curves
import extrapolation
import inspection
import masks
import page
from errors import USAGE, ReportError
from figures import Control, Figure
from runs import Group, Run, differing_fields, group_by_seed, read_runs


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ReportError(USAGE, f"{message} (see scripts/report.sh --help)")


def arguments() -> argparse.Namespace:
    parser = Parser(prog="report.sh", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", default="report.html")
    parser.add_argument("--eval", nargs="+", action="extend", default=[], metavar="FILE")
    parser.add_argument("--inspect", nargs="+", action="extend", default=[], metavar="DIR")
    parser.add_argument("--title", default="StableMask runs")
    return parser.parse_args()


def require_writable(out: Path, inputs: list[Path]) -> None:
    """Asked before the work."""
    if is_special(out):
        if not os.access(out, os.W_OK):
            raise ReportError(USAGE, f"--out {out}: cannot be written; name another file")
        return
    if str(out) == "-":
        raise ReportError(USAGE, f"--out {out}: name a file; the page is no text for a terminal")
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise ReportError(USAGE, f"--out {out}: is read for the page; name another file")
    if out.is_dir():
        raise ReportError(USAGE, f"--out {out}: is a folder; name a file")
    folder = out.resolve().parent
    if not folder.is_dir():
        raise ReportError(USAGE, f"--out {out}: no folder {folder}; make it first")
    if not os.access(folder, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise ReportError(USAGE, f"--out {out}: cannot be written; name another file")


def is_special(out: Path) -> bool:
    """Whether it is a pipe, a device or a socket, which no file may replace."""
    return out.exists() and not out.is_file() and not out.is_dir()


def write(out: Path, text: str) -> None:
    """Replaces the file, or the one that a link leads to, in one step: a browser may be reading it.
    A pipe or a device is written straight."""
    target = out.resolve()
    temporary = target.with_name(f"{target.name}.tmp-{secrets.token_hex(8)}")
    made = False
    try:
        if is_special(out):
            out.write_text(text, encoding="utf-8")
            return
        with open(temporary, "x", encoding="utf-8") as file:
            made = True
            file.write(text)
        os.replace(temporary, target)
    except OSError as error:
        if made:
            temporary.unlink(missing_ok=True)
        raise ReportError(USAGE, f"--out {out}: cannot be written: {error.strerror}") from error


FIGURES_HEADER = ("run", "state", "mask", "steps", "tokens", "loss", "best valid", "at step",
                  "word ppl", "tokens/s", "hours")


def final_figures(groups: list[Group]) -> str:
    rows = []
    for group in groups:
        rows += [_row(run) for run in group.runs]
        if len(group.runs) > 1:
            rows.append(_mean_row(group))
    return page.table(FIGURES_HEADER, rows, numbers_from=3)


def _row(run: Run) -> list[str]:
    last, best_step = run.lines[-1], run.best("step")
    steps = run.config.get("train.steps")
    return [
        run.name,
        "done" if run.finished() else "open",
        masks.describe(run.config),
        f"{last['step']:,}" + (f" / {steps:,}" if isinstance(steps, int) else ""),
        _text(run.last("tokens"), 0),
        _text(run.last("loss"), 4),
        _text(run.best("valid_loss"), 4),
        _text(best_step, 0),
        _text(run.best("valid_word_ppl"), 2),
        _text(run.tokens_per_second(), 0),
        _text((run.last("seconds") or 0.0) / 3600, 2),
    ]


def _mean_row(group: Group) -> list[str]:
    def mean(values: list[float | None], digits: int) -> str:
        known = [value for value in values if value is not None]
        if len(known) < len(group.runs):
            return "–"
        half = (max(known) - min(known)) / 2
        return f"{sum(known) / len(known):,.{digits}f} ± {half:,.{digits}f}"

    return [
        f"{group.name} (mean of {len(group.runs)})", "", "", "", "",
        mean([run.last("loss") for run in group.runs], 4),
        mean([run.best("valid_loss") for run in group.runs], 4), "",
        mean([run.best("valid_word_ppl") for run in group.runs], 2),
        mean([run.tokens_per_second() for run in group.runs], 0), "",
    ]


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def differences(runs: list[Run]) -> str:
    names = differing_fields(runs)
    if not names:
        return page.paragraph("The configs are equal, apart from train.out.")
    known = [run for run in runs if run.config]
    rows = [[name] + [_value(run, name) for run in known] for name in names]
    return page.table(["field"] + [run.name for run in known], rows, numbers_from=len(known) + 1,
                      wrapped=True)


def _value(run: Run, name: str) -> str:
    if name not in run.config:
        return "(older version)"
    value = run.config[name]
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def curve_section(groups: list[Group]) -> tuple[str, list[Figure]]:
    made = curves.figures(groups)
    controls = [Control("axis", "horizontal axis",
                        [("step", "steps"), ("tokens", "tokens"), ("hours", "hours")])]
    if any("late" in figure.layout.get("meta", {}) for figure in made):
        controls.append(Control("range", "vertical axis of losses",
                                [("late", "after the first fifth"), ("all", "everything")]))
    if any("curves" in trace.meta["when"] for figure in made for trace in figure.traces):
        controls.append(Control("curves", "noisy curves", [
            ("smooth", f"running mean over {curves.SMOOTHED_PART:.0%} of the lines"),
            ("raw", "every line")]))
    if any(len(group.runs) > 1 for group in groups):
        controls.append(Control("seeds", "runs that differ in train.seed",
                                [("mean", "mean, lowest to highest"), ("single", "each run")]))
    body = page.controls(controls) + page.figure_grid(made)
    return page.section("Training", body), made


def build(options: argparse.Namespace) -> str:
    runs = read_runs(options.runs)
    groups = group_by_seed(runs)
    body = page.section("Final figures", final_figures(groups) + page.paragraph(
        "loss: mean of the last line; best valid: lowest validation loss, nats per token, with its "
        "step and word perplexity; tokens/s: median." + (
            " Means: ± half of highest − lowest." if len(groups) < len(runs) else "")))
    if len(runs) > 1:
        body += page.section("Differences of the configs", differences(runs))
    text, figures = curve_section(groups)
    body += text

    evaluations = extrapolation.read_evaluations(runs, options.eval)
    if evaluations:
        figure = extrapolation.figure(evaluations, groups)
        made = [figure] if figure else []
        table = page.table(extrapolation.COLUMNS, extrapolation.table(evaluations), numbers_from=3)
        body += page.section("Perplexity by length", page.figure_grid(made) + table)
        figures += made

    pictures = masks.figures(runs)
    if pictures:
        body += page.section("Masks", page.figure_grid(pictures))
        figures += pictures
    for index, found in enumerate(inspection.read_inspections(runs, options.inspect)):
        made = inspection.figures(found, f"inspect-{index}")
        body += page.section(f"What the mask does: {found.name}", page.paragraph(
            f"Checkpoint {found.values.get('checkpoint')}, text {found.values.get('data')}."
        ) + page.figure_grid(made))
        figures += made
    return page.document(options.title, body, figures)


def main() -> int:
    try:
        options = arguments()
        out = Path(options.out)
        require_writable(out, [Path(path) for path in options.eval])
        text = build(options)
        write(out, text)
    except ReportError as error:
        print(f"report.sh: error: {error}", file=sys.stderr)
        return error.code
    print(f"{out}: {len(text.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
