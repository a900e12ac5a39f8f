"""Figures, and the reports of attention-loadgen that they are made of."""

import math


class Row:
    """A figure and what it should be: at most or at least `bound`, when there is one."""

    def __init__(self, name, value, unit="", at_most=None, at_least=None, detail=""):
        self.name, self.value, self.unit, self.detail = name, value, unit, detail
        self.at_most, self.at_least = at_most, at_least

    def is_missed(self):
        return ((self.at_most is not None and self.value > self.at_most)
                or (self.at_least is not None and self.value < self.at_least))

    def target(self):
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""


def rate(report):
    return report["rates"]["requests_per_second"]


def latency(report, which):
    """Milliseconds; infinite when nothing was answered."""
    times = report["latency_us"]
    return times[which] / 1000 if times["count"] else math.inf


def check_clean(*reports):
    """A figure of a run with errors would say nothing."""
    for report in reports:
        if report["requests"]["errors"]:
            raise RuntimeError(f"a run had errors: {report['errors']}")


def timed(options, at_least=0):
    return (f"--duration={max(options.seconds, at_least)}s", "--warmup=1s")
