#!/usr/bin/env python3
"""Registers, spills and shared memory of every CUDA kernel, as ptxas reports them and as the kernels' own
constants derive them (kernels/cuda/README.md, "Tiles").

Compiles each file of device code once, for compute capability 9.0 or those that --architectures names (the kernels
of 9.0 alone for 9.0a), so it needs nvcc but no GPU. Prints a table, and exits with 1 if a kernel spills, has a
stack, has more registers than its block's share of a multiprocessor, asks for more shared memory than the smallest
device that runs it has, or if ptxas cannot keep its matrix instructions asynchronous.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kernels/cuda/kernels"
SKIPPED = 77

# A block of compute capability 8.6, 8.9 and 12.0 may have this much (CUDA programming guide, table of
# technical specifications).
MAX_SHARED_BYTES = 99 * 1024
# The same for 9.0, which alone runs the kernels of warpgroups.
MAX_WGMMA_SHARED_BYTES = 227 * 1024
REGISTER_FILE = 64 * 1024
MAX_REGISTERS = 255
WGMMA_ARCHITECTURE = "90a"
# Registers of the three warpgroups after they traded them (pipeline.h). If the launch gave the block fewer, a
# warpgroup would wait for them for ever.
TRADED_REGISTERS = 128 * (40 + 2 * 232)

# Blocks that should share a multiprocessor, by registers: what hides one's copies behind the other's work.
WANTED_BLOCKS = {"AttendMma": {64: 2, 128: 2, 256: 1}, "AttendDecode": {64: 4, 128: 3, 256: 3},
                 "AttendFloat": {64: 2, 128: 2, 256: 2}, "Probe": {64: 2, 128: 2, 256: 2},
                 "RowTotals": {64: 2, 128: 2, 256: 2}, "Append": {0: 4},
                 "SplitRows": {0: 4}, "FinishRows": {0: 4}, "AttendWgmma": {64: 1, 128: 1, 256: 1}}

# Sines of float64 keep digits of 2 / pi there, for angles that no position reaches.
ALLOWED_STACK = {"FinishRows": 64}

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# Entry<AttendMma<type, kv type, head dim>>, Entry<AttendDecode<DecodeSizes<the same>, copies>>, ...
MMA = re.compile(r"EntryINS0_9AttendMmaILNS_5DTypeE(\d)ELS3_(\d)ELi(\d+)E")
DECODE = re.compile(r"EntryINS0_12AttendDecodeINS0_11DecodeSizesILNS_5DTypeE(\d)ELS\d_(\d)ELi(\d+)EEENS0_\d+Decode(Bulk)?CopiesE")
FLOAT = re.compile(r"EntryINS0_\d+(AttendFloat|RowTotals|Probe)ILi(\d+)E")
APPEND = re.compile(r"EntryINS0_6AppendE")
PROJECTION = re.compile(r"EntryINS0_\d+(SplitRows|FinishRows)E")
WGMMA = re.compile(r"EntryINS0_11AttendWgmmaILNS_5DTypeE(\d)ELi(\d+)E")
# The words of ptxas when it waits for each matrix instruction, or finds setmaxnreg without meaning.
SERIALIZED = re.compile(r".*(?:wgmma\.mma_async instructions are serialized|warpgroup\.wait is injected"
                        r"|setmaxnreg.*ignored).*")
# By DType (kernels/api/dtype.h), and those that have row scales.
TYPE_BYTES = {"0": 4, "1": 2, "2": 2, "3": 1, "4": 1}
SCALED_TYPES = "34"


def mma_shared_bytes(kv_type, dim):
    """The layout in the head of attend_mma.h."""
    rows, keys = 64, 64 if dim <= 128 else 32
    queries = rows * dim * 2
    stage = 2 * keys * (dim * TYPE_BYTES[kv_type] + (4 if kv_type in SCALED_TYPES else 0))
    converted = 2 * keys * dim * 2 if kv_type in SCALED_TYPES else 0
    result = (rows * (dim + 8 + 2) + 1) * 4
    return max(queries + 2 * stage + converted, result)


def decode_shared_bytes(kv_type, dim, is_bulk):
    """The layout in the head of decode_sizes.h."""
    warps, stages = 4 if dim <= 128 else 2, 2
    queries = 16 * (dim + 8) * 2
    buffer = 2 * 16 * (dim * TYPE_BYTES[kv_type] + (4 if kv_type in SCALED_TYPES else 0))
    barriers = warps * stages * 8 if is_bulk else 0
    result = (warps * 16 * (dim + 8 + 2) + 1) * 4
    return max(queries + warps * stages * buffer + barriers, result)


def wgmma_shared_bytes(dim):
    """The layout of Pipeline in pipeline.h."""
    keys, stages = (128 if dim <= 128 else 64), (4 if dim == 64 else 2)
    barriers = 8 * (5 * stages + 2 * 2)
    words = 4 * (2 + 3 * stages)
    return 128 * dim * 2 + 2 * stages * keys * dim * 2 + barriers + words


def describe(name):
    """(kernel, head dim, threads, shared bytes) of an entry's mangled name; None for others."""
    if match := MMA.search(name):
        dim = int(match[3])
        return "AttendMma", dim, 128, mma_shared_bytes(match[2], dim)
    if match := DECODE.search(name):
        dim = int(match[3])
        return "AttendDecode", dim, 128 if dim <= 128 else 64, decode_shared_bytes(match[2], dim, bool(match[4]))
    if match := FLOAT.search(name):
        dim = int(match[2])
        tiles = 2 * 32 * (dim + 4)
        shared = tiles + {"AttendFloat": 32 * 33 + 32, "RowTotals": 1, "Probe": 16 * 32}[match[1]]
        return match[1], dim, 128, 4 * max(shared, 32 * (dim + 10) + 1 if match[1] == "AttendFloat" else 0)
    if match := WGMMA.search(name):
        dim = int(match[2])
        return "AttendWgmma", dim, 384, wgmma_shared_bytes(dim)
    if match := PROJECTION.search(name):
        return match[1], 0, 128, 16 if match[1] == "SplitRows" else 0
    if APPEND.search(name):
        return "Append", 0, 128, 0
    return None


def compile_report(source, architecture, folder):
    command = ["nvcc", "-std=c++20", "-O3", "-DNDEBUG", "-fmad=false", "--expt-relaxed-constexpr",
               f"-I{ROOT}", f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas=-v",
               "-cubin", "-o", str(pathlib.Path(folder) / "kernel.cubin"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for sm_{architecture}:\n{result.stderr}")
    return result.stderr + result.stdout


def entries(report):
    """(mangled name, stack bytes, spilled bytes, registers) of each kernel of a ptxas report."""
    name, stack, spilled = None, 0, 0
    for line in report.splitlines():
        if match := ENTRY.search(line):
            name, stack, spilled = match[1], 0, 0
        elif match := FRAME.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := REGISTERS.search(line)) and name is not None:
            yield name, stack, spilled, int(match[1])
            name = None


def faults(kernel, dim, threads, shared, stack, spilled, registers):
    if stack > ALLOWED_STACK.get(kernel, 0) or spilled:
        yield f"{stack} bytes of stack, {spilled} of spills, expected {ALLOWED_STACK.get(kernel, 0)} and none"
    # Registers are handed out to warps in units of 8 a thread.
    blocks = REGISTER_FILE // ((registers + 7) // 8 * 8 * threads)
    wanted = WANTED_BLOCKS[kernel][dim]
    if blocks < wanted:
        yield f"{registers} registers leave room for {blocks} blocks, expected {wanted}"
    if kernel == "AttendWgmma" and registers * threads < TRADED_REGISTERS:
        yield f"{registers} registers at the launch, expected at least {TRADED_REGISTERS // threads} to trade"
    if registers > MAX_REGISTERS:
        yield f"{registers} registers, expected at most {MAX_REGISTERS}"
    limit = MAX_WGMMA_SHARED_BYTES if kernel == "AttendWgmma" else MAX_SHARED_BYTES
    if shared > limit:
        yield f"{shared} bytes of shared memory, expected at most {limit}"


def builds(architectures):
    """(source file, architecture) of each compilation."""
    for source in sorted(FOLDER.glob("*/*.cu")):
        if source.name in ("ceilings.cu", "meter.cu", "wgmma_peak.cu"):
            continue  # of what measures the device
        if source.parent.name == "sm90":
            yield source, WGMMA_ARCHITECTURE
        else:
            yield from ((source, architecture) for architecture in architectures)


def main():
    if shutil.which("nvcc") is None:
        print("skipped: nvcc is not here")
        return SKIPPED
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", default="90", help="comma-separated, as 80,90 (90)")
    architectures = parser.parse_args().architectures.split(",")
    count = 0
    is_good = True
    print(f"{'kernel':<13} {'dim':>4} {'threads':>7} {'arch':>6} {'registers':>9} {'stack':>5} {'spills':>6} "
          f"{'shared':>7}  file")
    with tempfile.TemporaryDirectory() as folder:
        for source, architecture in builds(architectures):
            report = compile_report(source, architecture, folder)
            for line in SERIALIZED.findall(report):
                print(f"FAILED: {source.name}: {line}")
                is_good = False
            for name, stack, spilled, registers in entries(report):
                described = describe(name)
                if described is None:
                    print(f"FAILED: {name} of {source.name} is not known to this test")
                    is_good = False
                    continue
                kernel, dim, threads, shared = described
                count += 1
                print(f"{kernel:<13} {dim:>4} {threads:>7} {'sm_' + architecture:>6} {registers:>9} "
                      f"{stack:>5} {spilled:>6} {shared:>7}  {source.name}")
                for fault in faults(kernel, dim, threads, shared, stack, spilled, registers):
                    print(f"FAILED: {kernel} dim {dim} on sm_{architecture}: {fault}")
                    is_good = False
    expected = (4 * 6 + 3 * 3 + 1 + 2) * len(architectures) + (2 + 4) * 3
    if count != expected:
        print(f"FAILED: {count} kernels, expected {expected}")
        is_good = False
    print("every kernel keeps to its budget" if is_good else "some kernels do not")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
