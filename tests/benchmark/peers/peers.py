"""Our CPU kernels beside other attention on the processor, in turns, on the same inputs. See README.md.

Exits with 1 if a contender's output is wrong.
"""

import argparse
import gc
import importlib
import os
import sys

import cases
import native
import table
import turns


def parse_arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of every contender (default: all cores)")
    parser.add_argument("--filter", default="", help="only cases whose NAME/DTYPE contains this")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a contender's turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--markdown", help="write the table to this file, not to the output")
    return parser.parse_args()


class Peers:
    """The peers that this machine has, and why it lacks the others."""

    def __init__(self, library):
        self.library = library
        self.versions = {}
        self.skipped = {}
        self._torch = self._import("torch", "torch_peer")
        self._onnx = self._import("ONNX Runtime", "onnx_peer")
        if self._torch:
            self._torch.set_threads(library.threads)
        if library.has_onednn:
            self.versions["oneDNN"] = library.onednn_version()
        else:
            self.skipped["oneDNN"] = "the library was built without it (no libdnnl-dev 2.6)"

    def _import(self, name, module):
        try:
            peer = importlib.import_module(module)
        except Exception as error:  # a broken installation may raise anything
            self.skipped[name] = (str(error) or type(error).__name__).splitlines()[0]
            return None
        self.versions[name] = peer.version()
        return peer

    def makers(self, case):
        """(column, function that makes the contender) of each that has the case."""
        threads = self.library.threads
        makers = [("ours", lambda: native.Kernels(self.library, case))]
        if self._torch:
            makers.append(("torch", lambda: self._torch.Torch(case)))
        if self._onnx:
            own = case.as_float16() if case.dtype == "bfloat16" else case
            makers.append(("ORT GQA", lambda: self._onnx.GroupQueryAttention(own, threads)))
            if self._onnx.MultiHeadAttention.can_compute(case):
                makers.append(("ORT MHA", lambda: self._onnx.MultiHeadAttention(own, threads)))
        if self.library.has_onednn and not case.has_window:
            makers.append(("oneDNN", lambda: native.OneDnn(self.library, case)))
        return makers


def prepare(column, make, case):
    """The contender, or None, and the first part of its result: whether its output is right."""
    try:
        contender = make()
        contender.run()
        error = case.error(contender.output(), not getattr(contender, "ignores_mask", False))
    except Exception as failure:  # the peers' own types
        if column == "ours":
            raise
        return None, {"column": column, "failure": str(failure)}
    is_right = error <= cases.TOLERANCES[contender.dtype]
    return contender, {"column": column, "form": contender.form, "dtype": contender.dtype,
                       "error": error, "is_right": is_right}


def shape_text(case):
    shape = case.shape
    text = (f"{shape.batch_size} x {shape.q_len} on {shape.kv_len}, "
            f"{shape.num_q_heads}/{shape.num_kv_heads} x {shape.head_dim}")
    if case.is_masked:
        text += ", causal"
    return text + (f", window {shape.window_left + 1}" if case.has_window else "")


def run_case(case, peers, options):
    """The record of one row."""
    pairs = [prepare(column, make, case) for column, make in peers.makers(case)]
    running = [(contender, result) for contender, result in pairs if contender is not None]
    ceilings, taken = turns.take([contender for contender, _ in running],
                                 peers.library.measure_ceilings, options.rounds, options.seconds)
    for (contender, result), turn in zip(running, taken):
        result |= {"seconds": turn.value, "rate": case.work / turn.value, "waiting": turn.waiting,
                   "is_calm": turn.is_calm}
        contender.close()
    record = {"name": case.name, "dtype": case.dtype, "shape": shape_text(case),
              "is_memory_bound": case.is_memory_bound,
              "results": [result for _, result in pairs]}
    return record | compare(record["results"], *native.ceiling_of(case, ceilings))


def compare(results, ceiling_name, ceiling):
    right = {result["column"]: result["rate"] for result in results if result.get("is_right")}
    compared = {"ceiling_name": ceiling_name, "ceiling": ceiling}
    ours = right.pop("ours", None)
    if ours is not None:
        compared["share"] = ours / ceiling
        if right:
            compared |= {"best_peer": max(right, key=right.get),
                         "ratio": ours / max(right.values())}
    return compared


def run_all(peers, options):
    records = []
    for dtype in ("float32", "bfloat16"):
        for shape in peers.library.shapes():
            if options.filter not in f"{shape.name.decode()}/{dtype}":
                continue
            records.append(run_case(cases.Case(shape, dtype), peers, options))
            print(table.summary(records[-1]), file=sys.stderr, flush=True)
            gc.collect()
    return records


def main():
    options = parse_arguments()
    # Before anything loads an OpenMP.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    library = native.Library(options.library, options.threads)
    peers = Peers(library)
    for name, reason in peers.skipped.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    report = {"device": library.device(), "threads": options.threads, "versions": peers.versions,
              "skipped": peers.skipped,
              "columns": ["ours", "torch", "ORT GQA", "ORT MHA", "oneDNN"],
              "records": run_all(peers, options)}
    table.write(report, options.json, options.markdown)
    if not options.markdown:
        print(table.markdown(report))
    return report_wrong(report["records"])


def report_wrong(records):
    status = 0
    for record in records:
        for result in record["results"]:
            where = f"{record['name']}/{record['dtype']}: {result['column']}"
            if "failure" in result:
                print(f"{where} failed: {result['failure']}", file=sys.stderr)
            elif not result["is_right"]:
                print(f"{where} is wrong: off by {result['error']:.2g} of the row's largest element",
                      file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
