"""Prints the Markdown table of scripts/bench/mask_table.sh and writes table.json beside it.

    python3 scripts/bench/mask_table.py FOLDER CONTEXT

FOLDER/VARIANT-SEED/eval-FORM[-window].json are reports of `stablemask eval --lengths`.
"""

import json
import re
import sys
from pathlib import Path

FORMS = {
    "trained": "as trained",
    "infinite": "mask length infinite in all rows",
    "none": "no mass beyond the mask length",
}
ORDER = ["alibi-causal", "alibi-stablemask", "alibi-learnable", "rope-causal", "rope-stablemask",
         "rope-learnable", "rope-slopes"]


def read(folder: Path) -> dict[tuple[str, str, bool], dict[int, dict[int, float]]]:
    """(variant, form, window) -> length -> seed -> word perplexity."""
    table: dict[tuple[str, str, bool], dict[int, dict[int, float]]] = {}
    for path in sorted(folder.glob("*-*/eval-*.json")):
        variant, seed = path.parent.name.rsplit("-", 1)
        match = re.fullmatch(r"eval-(\w+?)(-window)?\.json", path.name)
        if match is None:
            continue
        lengths = table.setdefault((variant, match[1], match[2] is not None), {})
        for row in json.loads(path.read_text())["lengths"]:
            lengths.setdefault(row["window"], {})[int(seed)] = row["word_perplexity"]
    return table


def main() -> None:
    folder, context = Path(sys.argv[1]), int(sys.argv[2])
    table = read(folder)
    if not table:
        sys.exit(f"mask_table.py: no VARIANT-SEED/eval-*.json in {folder}")
    lengths = sorted({length for row in table.values() for length in row})
    heads = [f"L = {n}{' (trained)' if n == context else ''}" for n in lengths]
    print(f"| model | evaluated | {' | '.join(heads)} |")
    print("| --- " * (2 + len(lengths)) + "|")
    keys = sorted(table, key=lambda k: (ORDER.index(k[0]), k[2], list(FORMS).index(k[1])))
    for variant, form, window in keys:
        cells = []
        for length in lengths:
            by_seed = table[variant, form, window].get(length, {})
            cells.append(" ".join(f"{by_seed[seed]:.2f}" for seed in sorted(by_seed)))
        how = FORMS[form] + (f", window {context}" if window else "")
        print(f"| {variant} | {how} | {' | '.join(cells)} |")
    rows = [{"variant": v, "form": f, "window": context if w else None, "word_perplexity": table[v, f, w]}
            for v, f, w in keys]
    (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")


main()
