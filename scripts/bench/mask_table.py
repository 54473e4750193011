"""Prints the Markdown table of scripts/bench/mask_table.sh and writes table.json beside it.

    python3 scripts/bench/mask_table.py FOLDER CONTEXT

FOLDER/…-POSITION-MASK-SEED/eval-FORM[-window].json are reports of `stablemask eval --lengths`.
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


def read(folder: Path) -> dict[tuple[str, str, str, bool], dict[int, dict[int, float]]]:
    """(position, mask, form, window) -> length -> seed -> word perplexity."""
    table: dict[tuple[str, str, str, bool], dict[int, dict[int, float]]] = {}
    for path in sorted(folder.glob("*/eval-*.json")):
        position, mask, seed = path.parent.name.split("-")[-3:]
        match = re.fullmatch(r"eval-(\w+?)(-window)?\.json", path.name)
        if match is None:
            continue
        lengths = table.setdefault((position, mask, match[1], match[2] is not None), {})
        for row in json.loads(path.read_text())["lengths"]:
            lengths.setdefault(row["window"], {})[int(seed)] = row["word_perplexity"]
    return table


def main() -> None:
    folder, context = Path(sys.argv[1]), int(sys.argv[2])
    table = read(folder)
    if not table:
        sys.exit(f"mask_table.py: no …-POSITION-MASK-SEED/eval-*.json in {folder}")
    lengths = sorted({length for row in table.values() for length in row})
    heads = [f"L = {n}{' (trained)' if n == context else ''}" for n in lengths]
    print(f"| model | evaluated | {' | '.join(heads)} |")
    print("| --- " * (2 + len(lengths)) + "|")
    keys = sorted(table, key=lambda k: (k[0], k[1] != "causal", k[1], k[3], list(FORMS).index(k[2])))
    for position, mask, form, window in keys:
        cells = []
        for length in lengths:
            seeds = table[position, mask, form, window].get(length, {})
            cells.append(" ".join(f"{seeds[seed]:.2f}" for seed in sorted(seeds)))
        how = FORMS[form] + (f", window {context}" if window else "")
        print(f"| {position}, {mask} | {how} | {' | '.join(cells)} |")
    rows = [{"position": p, "mask": m, "form": f, "window": context if w else None,
             "word_perplexity": table[p, m, f, w]} for p, m, f, w in keys]
    (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")


main()
