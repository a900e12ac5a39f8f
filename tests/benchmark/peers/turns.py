"""Contenders take turns, so that a slow minute of the machine is everybody's."""

import dataclasses
import glob
import statistics
import time

PAUSE_SECONDS = 0.02  # lets the threads of the last contender stop spinning
# Share of a turn's length that its threads stood waiting for a core. More comes from other work, and hits
# those hardest that split the work into equal parts beforehand.
MAX_WAITING = 0.05
ATTEMPTS = 4
LONG_TURN_SECONDS = 2.0  # not repeated


@dataclasses.dataclass
class Turn:
    value: object   # what was measured
    waiting: float  # of the turn's length; all threads together

    @property
    def is_calm(self):
        return self.waiting <= MAX_WAITING


def _waiting_seconds():
    """That the threads of this process ever waited for a core; 0 where the system does not tell."""
    total = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        try:
            with open(path, encoding="ascii") as file:
                total += int(file.read().split()[1])
        except OSError:  # a thread that ended
            pass
    return total / 1e9


def _calmest(measure):
    """The calmest of a few turns."""
    attempts = []
    while len(attempts) < ATTEMPTS:
        time.sleep(PAUSE_SECONDS)
        waiting, start = _waiting_seconds(), time.perf_counter()
        value = measure()
        length = time.perf_counter() - start
        attempts.append(Turn(value, (_waiting_seconds() - waiting) / length))
        if attempts[-1].is_calm or length > LONG_TURN_SECONDS:
            break
    return min(attempts, key=lambda turn: turn.waiting)


def _median_call(run, seconds):
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def take(contenders, measure_ceilings, rounds, seconds):
    """Ceilings, one of each round, and for each contender a Turn whose value is the median over its
    rounds of a call's seconds. Rounds that were not calm count where no other was."""
    ceilings = []
    rows = [[] for _ in contenders]
    for _ in range(rounds):
        ceilings.append(_calmest(measure_ceilings))
        for row, contender in zip(rows, contenders):
            row.append(_calmest(lambda: _median_call(contender.run, seconds)))
    return [turn.value for turn in _counted(ceilings)], [_median(row) for row in rows]


def _counted(turns):
    return [turn for turn in turns if turn.is_calm] or turns


def _median(turns):
    counted = _counted(turns)
    return Turn(statistics.median(turn.value for turn in counted),
                statistics.median(turn.waiting for turn in counted))
