"""Compares results files: one plot, BD-rates against any anchor, and one file for each codec in CompressAI's form.

    aeic bench curves out/rd/results.json docs/results/published_kodak.json --anchor StableCodec --out out/curves
    aeic bench curves results.txt --set Kodak --name StableCodec --out out/curves

FILES are results of ``aeic bench rd``, CompressAI's own files, or the text files that AEIC's and StableCodec's authors
publish (aeic_train/evaluation/results_files.py). The curves must belong to one set of pictures: --set chooses it where
a file has several. The command writes to OUT:

    curves/NAME.json    read by CompressAI: python -m compressai.utils.plot -f OUT/curves/*.json -m psnr -o P.png
    curves.svg, .png    a panel for each metric
    curves.md           every codec at equal bits, and BD-rates

--anchor gives the codec that all others are compared with; by default, AEIC's curves are compared with each other one.
The last line is JSON: BD-rates against the anchor in percent.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from aeic.errors import AeicError, InputError
from aeic_train.evaluation import rd_curves, results_files
from aeic_train.reports import rd_plots
from aeic_train.reports.rd_plots import PictureSet


def gather(files: list[Path], set_name: str | None, name: str | None) -> list[results_files.Document]:
    """The documents of all files on one set. ``InputError`` if a codec is there twice, or the set is not clear."""
    found: list[results_files.Document] = []
    for path in files:
        documents = results_files.read(path, name)
        if set_name is not None:
            documents = [d for d in documents if d.get("set", set_name).lower().startswith(set_name.lower())]
        found += documents
    if not found:
        raise InputError(f"no results of the set {set_name!r}: leave --set out to see all")
    names: dict[str, str] = {}
    for document in found:
        where = document.get("set", "")
        if document["name"] in names:
            sets = ", ".join(sorted({d.get("set", "") for d in found} - {""}))
            hint = f"choose one of its sets by --set: {sets}" if sets else "give each codec once, or --name for a file"
            raise InputError(f"{document['name']!r} is there twice: {hint}")
        names[document["name"]] = where
    return found


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench curves", description=__doc__, formatter_class=form)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--set", help="only results on this set, where a file names sets")
    parser.add_argument("--name", help="the codec's name, for one file that does not hold it")
    parser.add_argument("--anchor", help="the codec that the others are compared with")
    parser.add_argument("--out", type=Path, default=Path("out/curves"))
    options = parser.parse_args(argv)
    if options.name and len(options.files) > 1:
        parser.error("--name: give one file with it")
    try:
        _run(options)
    except (AeicError, OSError) as error:
        print(f"aeic bench curves: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def _run(options: argparse.Namespace) -> None:
    documents = gather(options.files, options.set, options.name)
    curves = {document["name"]: rd_curves.curve_of(document) for document in documents}
    if options.anchor is not None and options.anchor not in curves:
        raise InputError(f"no curve {options.anchor!r}: choose from {', '.join(curves)}")
    results_files.write_each(documents, options.out / "curves")
    ordered = dict(sorted(curves.items(), key=lambda item: not rd_plots.is_ours(item[0])))
    of_set = PictureSet(options.set or documents[0].get("description", ""), ordered)
    rd_plots.draw(of_set, options.out / "curves")
    text = rd_plots.table(of_set, options.out / "curves")
    rates: dict[str, Any] = {}
    if options.anchor is not None:
        measures = rd_curves.present(curves.values(), rd_curves.COMPARED)
        anchor = curves[options.anchor]
        for name in (name for name in ordered if name != options.anchor):
            values = {m: rd_curves.bd_rate(anchor, curves[name], m) for m in measures}
            rates[name] = {m: None if value is None else round(value, 2) for m, value in values.items()}
        lines = [f"## BD-rate against {options.anchor}, percent (negative: fewer bits)\n"]
        lines += ["| codec | " + " | ".join(measures) + " |", "|---|" + "---|" * len(measures)]
        for name, row in rates.items():
            lines.append(f"| {name} | " + " | ".join("–" if v is None else f"{v:+.1f}" for v in row.values()) + " |")
        text = "\n".join([text, *lines, ""])
    (options.out / "curves.md").write_text(text)
    print(text)
    print(json.dumps({"bench": "curves", "codecs": [*ordered], "anchor": options.anchor, "bd_rates": rates}))


if __name__ == "__main__":
    main()
