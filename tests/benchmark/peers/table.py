"""Results as Markdown and JSON."""

import json

_UNITS = {True: "GB/s", False: "GFLOP/s"}
_NOTES = """\
- GFLOP/s count the visible pairs only, GB/s the keys and values read once. Each figure is the median of
  its rounds; contenders took turns. A turn whose threads waited for a core, because other work ran, was
  repeated; `~` marks what had no calm turn: too low, by the more the more a contender relies on equal cores.
- share: of the ceiling in the same row, measured between the turns of that row.
- ours / best: against the fastest peer of the row.
- oneDNN applies no mask: in causal rows it computes something easier, for the whole square.
- torch is the fastest of several forms (the JSON file names it). KV heads are repeated, where they are,
  before the clock starts.
- `fp16`: ONNX Runtime has no bfloat16 here, so this figure is float16, which has as many bytes.
- `wrong`: the output does not agree with float64. `failed`: the peer refused the case.
- `-`: does not have this case."""


def unit(record):
    return _UNITS[record["is_memory_bound"]]


def summary(record):
    """One line for a terminal."""
    figures = ", ".join(f"{result['column']} {_figure(result)}" for result in record["results"])
    return f"{record['name']} {record['dtype']} ({unit(record)}): {figures}"


def _figure(result):
    if "failure" in result:
        return "failed"
    if not result["is_right"]:
        return "wrong"
    mark = "" if result["is_calm"] else " ~"
    if result["dtype"] == "float16":
        mark += " fp16"
    return f"{result['rate'] / 1e9:.1f}{mark}"


def _row(record, columns):
    by_column = {result["column"]: result for result in record["results"]}
    share = f"{100 * record['share']:.0f} % {record['ceiling_name']}" if "share" in record else "-"
    ratio = f"{record['ratio']:.2f}" if "ratio" in record else "-"
    cells = [record["name"], record["shape"], unit(record)]
    cells += [_figure(by_column[column]) if column in by_column else "-" for column in columns]
    cells[4:4] = [share]
    return _line([*cells, f"**{ratio}**"])


def _line(cells):
    return "| " + " | ".join(cells) + " |"


def markdown(report):
    columns = report["columns"]
    lines = [f"{report['device']}, {report['threads']} threads; "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."]
    lines += [f"Skipped: {name}: {reason}." for name, reason in report["skipped"].items()]
    for dtype in dict.fromkeys(record["dtype"] for record in report["records"]):
        header = ["case", "shape", "unit", columns[0], "share", *columns[1:], "ours / best"]
        lines += ["", f"**{dtype}**", "", _line(header), _line(["---"] * len(header))]
        lines += [_row(record, columns) for record in report["records"] if record["dtype"] == dtype]
    return "\n".join([*lines, "", _NOTES, ""])


def write(report, json_path, markdown_path):
    if json_path:
        with open(json_path, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
    if markdown_path:
        with open(markdown_path, "w", encoding="utf-8") as file:
            file.write(markdown(report))
