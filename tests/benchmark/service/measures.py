"""The measures of the service: each runs its contenders in turns and yields rows.

Every figure is a quotient of two that were taken beside each other; the median of the rounds' counts.
"""

import statistics

import identity
from rows import Row, check_clean, latency, rate, timed

# One layer of a Llama-3-8B-like model.
LLAMA = ("--dtype=bfloat16", "--num-q-heads=32", "--num-kv-heads=8", "--head-dim-qk=128")
# Steps with some 2 MB of cache to read and little to send: the server is busy, the client is not.
STEP = ("--workload=decode", "--dtype=bfloat16", "--num-q-heads=32", "--num-kv-heads=4",
        "--head-dim-qk=128", "--context=1024", "--decode-tokens=4096")
SMALL = ("--dtype=bfloat16", "--num-q-heads=8", "--num-kv-heads=2", "--head-dim-qk=64")


class Kernels:
    """The kernels' rate for a batch, measured before and after each run that is held against it."""

    def __init__(self, programs, shape, work):
        self.programs, self.shape, self.work = programs, shape, work
        self.before = self.measure()

    def measure(self):
        return self.work / self.programs.kernel_seconds(self.shape, 1)

    def beside(self):
        """The mean of the rates before and after the run that has just ended."""
        before, self.before = self.before, self.measure()
        return (before + self.before) / 2


def decode_efficiency(programs, options):
    """64 sessions, and as many as 256 with a GPU, a step each at a time, against the kernels' time for that batch."""
    for batch in (64, 256) if programs.backend == "cuda" else (64,):
        yield from decode_efficiency_of(programs, options, batch)


def decode_efficiency_of(programs, options, batch):
    context, steps = 2048, max(8, round(16 * options.seconds))
    ratios, rates, sizes = {"calls": [], "streams": []}, [], []
    # Keys and values of 32/8 heads of 128 in bfloat16, twice as many tokens as the context has.
    capacity = batch * 2 * context * 2 * 8 * 128 * 2
    with programs.server(f"--kv-capacity-bytes={max(capacity, 3221225472)}") as server:
        kernels = Kernels(programs, f"{batch},32,8,1,{context},128", batch)
        for _ in range(options.rounds):
            for way in ratios:
                # Lengths go from below to above the kernels' and are the same on average.
                report = programs.load(
                    server, "--workload=decode", *LLAMA, f"--concurrency={batch}",
                    f"--context={context - steps // 2}", f"--requests={batch * steps}",
                    "--warmup=0", f"--streams={8 if way == 'streams' else 0}")
                check_clean(report)
                rates.append(kernels.beside())
                ratios[way].append(rate(report) / rates[-1])
                sizes.append(report["batch_size"]["mean"])
    detail = (f"kernels {statistics.median(rates):.0f} tokens/s, "
              f"batches of {statistics.median(sizes):.0f}")
    for way, values in ratios.items():
        yield Row(f"decode, {batch} sessions by {way} / kernels", statistics.median(values),
                  at_least=0.9 if programs.backend == "cuda" else 0.92, detail=detail)


def step_latency(programs, options):
    """The time of a lone session's step beyond its kernel, by each way to the server."""
    context = 1024
    added, kernels = {"tcp": [], "unix": [], "shared memory": []}, []
    with programs.server() as server:
        for _ in range(options.rounds):
            kernels.append(programs.kernel_seconds(f"1,32,8,1,{context},128", 1) * 1e6)
            for way, values in added.items():
                report = programs.load(
                    server, "--workload=decode", *LLAMA, "--concurrency=1", "--streams=1",
                    f"--context={context}", *timed(options),
                    address=server.tcp_address if way == "tcp" else server.address,
                    shared_memory="on" if way == "shared memory" else "off")
                check_clean(report)
                values.append(report["latency_us"]["p50"] - kernels[-1])
    for way, values in added.items():
        yield Row(f"a step by {way} beyond its kernel", statistics.median(values), "us",
                  detail=f"kernel {statistics.median(kernels):.0f} us")


def prefill_efficiency(programs, options):
    """Prompts of 2,048 tokens, two at a time, against the kernels' time for one."""
    tokens, ratios = 2048, []
    with programs.server() as server:
        kernels = Kernels(programs, f"1,32,8,{tokens},{tokens},128", 1)
        for _ in range(options.rounds):
            report = programs.load(server, "--workload=prefill", *LLAMA, f"--q-len={tokens}",
                                   "--concurrency=2", *timed(options))
            check_clean(report)
            ratios.append(rate(report) / kernels.beside())
    yield Row("prefill of 2,048 tokens / kernels", statistics.median(ratios), at_least=0.95)


def batching(programs, options):
    """Many small callers with and without batching, and what batching costs a single one."""
    gains, costs, sizes = [], [], []
    shape = ("--workload=decode", *SMALL, "--context=64", "--decode-tokens=4096")
    with programs.server() as on, programs.server("--max-batch-requests=1") as off:
        for _ in range(options.rounds):
            many = ("--concurrency=64", "--streams=8", *timed(options))
            with_it, without = (programs.load(server, *shape, *many) for server in (on, off))
            check_clean(with_it, without)
            gains.append(rate(with_it) / rate(without))
            sizes.append(with_it["batch_size"]["mean"])
            one = ("--concurrency=1", *timed(options))
            with_it, without = (programs.load(server, *shape, *one) for server in (on, off))
            costs.append(latency(with_it, "p50") / latency(without, "p50"))
    yield Row("64 small callers, batching on / off", statistics.median(gains), at_least=3,
              detail=f"batches of {statistics.median(sizes):.1f}")
    yield Row("p50 of one caller, batching on / off", statistics.median(costs), at_most=1.05)


def prefill_interference(programs, options):
    """The tail of decode while prompts of 32,768 tokens are computed without a pause."""
    ratios, details = [], []
    decode = ("--workload=decode", *LLAMA, "--concurrency=8", "--context=1024",
              "--decode-tokens=4096", *timed(options, at_least=8))
    prompts = ("--workload=prefill", "--dtype=bfloat16", "--num-q-heads=4", "--num-kv-heads=1",
               "--head-dim-qk=64", "--q-len=32768", "--warmup=0", "--duration=600s", "--timeout=120s")
    with programs.server() as server:
        for _ in range(options.rounds):
            alone = programs.load(server, *decode)
            with programs.running_load(server, *prompts) as prefill:
                beside = programs.load(server, *decode)
                done = prefill.stop()["requests"]["ok"]
            check_clean(alone, beside)
            ratios.append(latency(beside, "p99") / latency(alone, "p99"))
            details.append(f"{latency(alone, 'p99'):.1f} -> {latency(beside, 'p99'):.1f} ms, "
                           f"{done} prompts")
    yield Row("decode p99 beside 32k prefill / alone", statistics.median(ratios), at_most=2,
              detail=details[-1])


def tenant_interference(programs, options):
    """The share and latency of one tenant while another floods the server."""
    shares, ratios, details = [], [], []
    quiet = (*STEP, "--tenant=quiet")
    flood_flags = (*STEP, "--tenant=flood", "--concurrency=64", "--warmup=0", "--duration=600s")
    with programs.server("--kv-capacity-bytes=2147483648") as server:
        for _ in range(options.rounds):
            capacity = rate(programs.load(server, *quiet, "--concurrency=16", *timed(options)))
            some = ("--mode=open", f"--rate={0.4 * capacity:.1f}", "--sessions=64",
                    *timed(options))
            alone = programs.load(server, *quiet, *some)
            with programs.running_load(server, *flood_flags) as flood:
                full = programs.load(server, *quiet, "--concurrency=16", *timed(options))
                beside = programs.load(server, *quiet, *some)
                flooded = flood.stop()
            check_clean(alone, full, beside)
            shares.append(rate(full) / capacity)
            ratios.append(latency(beside, "p99") / latency(alone, "p99"))
            details.append(f"{latency(alone, 'p99'):.1f} -> {latency(beside, 'p99'):.1f} ms")
            flooding = rate(flooded) / capacity
    yield Row("quiet tenant's share of capacity", statistics.median(shares), at_least=0.45,
              detail=f"the flooding one's {flooding:.2f}")
    yield Row("quiet tenant's p99 at 40 %, flooded / alone", statistics.median(ratios), at_most=2,
              detail=details[-1])


def open_loop(programs, options):
    """Arrivals that do not wait, below and above what the server can do."""
    tails, goodputs, refusals, growths = [], [], [], []
    flags = (*STEP, "--mode=open", "--max-in-flight=640", "--sessions=640", "--allow-refused",
             *timed(options))
    with programs.server("--kv-capacity-bytes=4294967296", "--max-queued-requests=256") as server:
        for _ in range(options.rounds):
            most = rate(programs.load(server, *STEP, "--concurrency=64", *timed(options)))
            below = programs.load(server, *flags, f"--rate={0.7 * most:.1f}")
            check_clean(below)
            tails.append(latency(below, "p99") / latency(below, "p50"))
            with server.sampled_memory() as samples:
                above = programs.load(server, *flags, f"--rate={1.5 * most:.1f}")
            check_clean(above)
            goodputs.append(rate(above) / most)
            refusals.append(above["refusal_us"]["p99"] / 1000)
            resident = [mib for _, mib in samples]
            # The sessions' caches are filled in the first part.
            growths.append(max(resident) - resident[len(resident) // 2])
            counts = below["requests"]["refused"], above["requests"]["refused"]
    yield Row("70 % of saturation: p99 / p50", statistics.median(tails), at_most=5,
              detail=f"{counts[0]} refused")
    yield Row("150 %: goodput / saturation", statistics.median(goodputs), at_least=0.9,
              detail=f"saturation {most:.0f} steps/s")
    yield Row("150 %: p99 of refusals", statistics.median(refusals), "ms", at_most=5,
              detail=f"{counts[1]} refused")
    yield Row("150 %: growth of resident memory", max(growths), "MiB", at_most=64)


def many_streams(programs, options):
    """1,000 streams with 10 sessions each, open at once, against as many steps on one stream."""
    shape = ("--workload=decode", "--dtype=bfloat16", "--num-q-heads=2", "--num-kv-heads=1",
             "--head-dim-qk=64", "--context=16", "--timeout=60s")
    with programs.server("--kv-page-size=16", "--kv-capacity-bytes=2147483648") as server:
        few = programs.load(server, *shape, "--concurrency=1000", "--sessions=1000", "--streams=1",
                            *timed(options))
        many = programs.load(server, *shape, "--concurrency=1000", "--sessions=10000",
                             "--streams=1000", *timed(options))
        resident = server.resident_mib()
    for report in (few, many):
        yield Row(f"{report['options']['streams']} streams, {report['options']['sessions']} sessions: "
                  "errors", report["requests"]["errors"], at_most=0,
                  detail=f"p99 {latency(report, 'p99'):.0f} ms, {report['errors'][:1] or ''}")
    yield Row("steps/s, 1,000 streams / 1 stream", rate(many) / max(rate(few), 1e-9),
              detail=f"{rate(few):.0f} -> {rate(many):.0f}, {resident:.0f} MiB resident")


def soak(programs, options):
    """Mixed callers for a long time: resident memory by a straight line after the first quarter."""
    flags = ("--workload=mixed", *SMALL, "--q-len=256", "--context=512", "--decode-tokens=64",
             "--concurrency=12", f"--duration={options.soak}s", "--warmup=0")
    with programs.server() as server:
        with server.sampled_memory(every=1) as samples:
            report = programs.load(server, *flags)
    check_clean(report)
    late = [sample for sample in samples if sample[0] > options.soak / 4]
    slope = statistics.linear_regression(*zip(*late)).slope * 60
    yield Row(f"{options.soak:g} s of mixed load: memory", slope, "MiB/min", at_most=1,
              detail=f"{late[0][1]:.0f} -> {late[-1][1]:.0f} MiB, {report['requests']['ok']} requests")


ALL = {
    "decode-efficiency": decode_efficiency,
    "prefill-efficiency": prefill_efficiency,
    "step-latency": step_latency,
    "batching": batching,
    "prefill-interference": prefill_interference,
    "tenant-interference": tenant_interference,
    "open-loop": open_loop,
    "many-streams": many_streams,
    **identity.ALL,
    "soak": soak,
}
