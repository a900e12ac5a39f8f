#include "tests/benchmark/cuda/measure.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "tests/benchmark/cuda/peer.h"
#include "tests/benchmark/median.h"

namespace attention::bench {
namespace {

constexpr int kLeastRepetitions = 3;
constexpr int kMostRepetitions = 16;
static_assert(2 * kMostRepetitions <= cuda::DeviceMeter::kNumMarks);
// A call of a peer takes some tens of microseconds of the host; meanwhile the device is kept from
// coming to its end.
constexpr double kHeadStartSeconds = 300e-6;

struct Entry {
  std::unique_ptr<Contender> contender;
  std::size_t outcome = 0;
  int repetitions = kLeastRepetitions;
  std::vector<double> turns;
};

struct Entrants {
  Case bench_case;
  CaseTensors tensors;
  std::vector<ExpectedRow> expected;
  std::vector<Entry> entries;
  std::vector<Outcome> outcomes;
};

absl::StatusOr<double> TakeTurn(const Bench& bench, Contender& contender, int repetitions) {
  cuda::DeviceMeter& meter = *bench.meter;
  absl::Status status = contender.Rewind();
  if (status.ok())
    status = contender.Launch();  // into a warm cache, or the place where it would be
  for (int i = 0; status.ok() && i < repetitions; ++i) {
    status = contender.Rewind();
    if (status.ok()) status = meter.Spin(kHeadStartSeconds);
    if (status.ok() && bench.options.is_cold) status = meter.EvictCache();
    if (status.ok()) status = meter.Mark(2 * i);
    if (status.ok()) status = contender.Launch();
    if (status.ok()) status = meter.Mark(2 * i + 1);
  }
  std::vector<double> times;
  for (int i = 0; status.ok() && i < repetitions; ++i) {
    auto seconds = meter.SecondsBetween(2 * i, 2 * i + 1);
    if (!seconds.ok()) return seconds.status();
    times.push_back(*seconds);
  }
  if (!status.ok()) return status;
  return Median(std::move(times));
}

// Writes into the outcome if the contender's last result is right.
absl::Status Check(const Entrants& entrants, Contender& contender, Outcome* outcome) {
  auto error = WorstError(entrants.expected, [&](const RowRef& ref, std::vector<float>* row) {
    return contender.ReadRow(ref, row);
  });
  if (!error.ok()) return error.status();
  outcome->error = std::max(outcome->error, *error);
  if (!(outcome->error <= 1)) outcome->verdict = Verdict::kWrong;
  return absl::OkStatus();
}

// Takes in a contender, or the reason why it is not one. Ours is always one.
absl::Status Enter(const Bench& bench, const std::string& name,
                   absl::StatusOr<std::unique_ptr<Contender>> made, Entrants* entrants) {
  Outcome outcome{.contender = name};
  if (!made.ok()) {
    if (name == kOurs) return made.status();
    outcome.verdict = absl::IsUnimplemented(made.status()) ? Verdict::kAbsent : Verdict::kFailed;
    outcome.text = std::string(made.status().message());
    entrants->outcomes.push_back(outcome);
    return absl::OkStatus();
  }
  outcome.text = (*made)->form();
  if (absl::Status status = Check(*entrants, **made, &outcome); !status.ok()) return status;
  entrants->outcomes.push_back(outcome);
  if (outcome.verdict != Verdict::kRight) return absl::OkStatus();
  auto seconds = TakeTurn(bench, **made, kLeastRepetitions);
  if (!seconds.ok()) return seconds.status();
  const double wanted = bench.options.turn_seconds / std::max(*seconds, 1e-9);
  entrants->entries.push_back({.contender = std::move(*made),
                               .outcome = entrants->outcomes.size() - 1,
                               .repetitions = static_cast<int>(std::clamp<double>(
                                   std::ceil(wanted), kLeastRepetitions, kMostRepetitions)),
                               .turns = {}});
  return absl::OkStatus();
}

// Peers read tensors of the type of the rows; a cache of another type is ours alone.
bool SuitsPeers(const Case& bench_case) {
  return std::all_of(bench_case.parts.begin(), bench_case.parts.end(),
                     [](const Part& part) { return part.kv_dtype == part.dtype; });
}

absl::Status EnterPeers(const Bench& bench, std::int64_t token, Entrants* entrants) {
  if (bench.peers.empty() || !SuitsPeers(entrants->bench_case)) return absl::OkStatus();
  for (const auto& tensors : entrants->tensors) {
    if (absl::Status status = tensors->Upload(); !status.ok()) return status;
  }
  if (absl::Status status = bench.device->Synchronize(); !status.ok()) return status;
  for (const AttentionBenchPeer& peer : bench.peers) {
    absl::Status status = Enter(bench, peer.name,
                                MakePeer(peer, token, entrants->bench_case, entrants->tensors,
                                         *bench.device, bench.meter->stream()),
                                entrants);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MakeEntrants(const Bench& bench, const Case& bench_case, std::int64_t token,
                          Entrants* entrants) {
  entrants->bench_case = bench_case;
  auto tensors = MakeCaseTensors(bench_case, *bench.device);
  if (!tensors.ok()) return tensors.status();
  entrants->tensors = *std::move(tensors);
  entrants->expected = ExpectRows(entrants->tensors, bench.options.rows_per_part);
  absl::Status status =
      Enter(bench, kOurs, MakeOurs(bench_case, entrants->tensors, bench.device), entrants);
  return status.ok() ? EnterPeers(bench, token, entrants) : status;
}

// Each round begins with another contender.
absl::Status TakeRounds(const Bench& bench, std::vector<Entrants>& all, CeilingSamples* ceilings) {
  std::vector<Entry*> entries;
  for (Entrants& entrants : all) {
    for (Entry& entry : entrants.entries) entries.push_back(&entry);
  }
  for (int round = 0; round < bench.options.rounds; ++round) {
    if (absl::Status status = ceilings->Take(*bench.meter, bench.library.get()); !status.ok()) {
      return status;
    }
    for (std::size_t i = 0; i < entries.size(); ++i) {
      Entry& entry = *entries[(i + round) % entries.size()];
      auto seconds = TakeTurn(bench, *entry.contender, entry.repetitions);
      if (!seconds.ok()) return seconds.status();
      entry.turns.push_back(*seconds);
    }
  }
  return absl::OkStatus();
}

// Figures of those that are still right after all the repetitions.
absl::Status Finish(Entrants* entrants) {
  for (Entry& entry : entrants->entries) {
    Outcome& outcome = entrants->outcomes[entry.outcome];
    absl::Status status = entry.contender->Compute();
    if (status.ok()) status = Check(*entrants, *entry.contender, &outcome);
    if (!status.ok()) return status;
    if (outcome.verdict != Verdict::kRight) continue;
    const auto [least, most] = std::minmax_element(entry.turns.begin(), entry.turns.end());
    outcome.least_seconds = *least;
    outcome.most_seconds = *most;
    outcome.seconds = Median(entry.turns);
  }
  return absl::OkStatus();
}

void SetBeside(std::vector<CaseResult>* results) {
  for (CaseResult& result : *results) {
    double sum = 0;
    bool is_whole = !result.bench_case.beside.empty();
    for (const std::string& name : result.bench_case.beside) {
      const auto other = std::find_if(results->begin(), results->end(), [&](const CaseResult& one) {
        return one.bench_case.name == name;
      });
      const double seconds = other != results->end() ? other->best_seconds() : 0;
      is_whole = is_whole && seconds > 0;
      sum += seconds;
    }
    result.beside_seconds = is_whole ? sum : 0;
  }
}

}  // namespace

const Outcome* CaseResult::best_peer() const {
  const Outcome* best = nullptr;
  for (std::size_t i = 1; i < outcomes.size(); ++i) {
    const Outcome& outcome = outcomes[i];
    if (outcome.seconds > 0 && (best == nullptr || outcome.seconds < best->seconds)) {
      best = &outcome;
    }
  }
  return best;
}

double CaseResult::best_seconds() const {
  const Outcome* peer = best_peer();
  if (peer == nullptr) return ours().seconds;
  return ours().seconds > 0 ? std::min(ours().seconds, peer->seconds) : peer->seconds;
}

absl::StatusOr<std::vector<CaseResult>> MeasureGroup(const Bench& bench, const Group& group) {
  std::vector<Entrants> all(group.size());
  for (std::size_t i = 0; i < group.size(); ++i) {
    absl::Status status = MakeEntrants(bench, group[i], static_cast<std::int64_t>(i), &all[i]);
    if (!status.ok()) return status;
  }
  CeilingSamples ceilings;
  if (absl::Status status = TakeRounds(bench, all, &ceilings); !status.ok()) return status;
  std::vector<CaseResult> results;
  for (Entrants& entrants : all) {
    if (absl::Status status = Finish(&entrants); !status.ok()) return status;
    results.push_back({.bench_case = entrants.bench_case,
                       .work = WorkOf(entrants.bench_case),
                       .ceilings = ceilings.Medians(),
                       .outcomes = std::move(entrants.outcomes)});
  }
  SetBeside(&results);
  return results;
}

absl::StatusOr<double> MeasureMarks(cuda::DeviceMeter& meter) {
  std::vector<double> times;
  for (int i = 0; i < kMostRepetitions; ++i) {
    absl::Status status = meter.Spin(kHeadStartSeconds);
    if (status.ok()) status = meter.Mark(0);
    if (status.ok()) status = meter.Spin(0);
    if (status.ok()) status = meter.Mark(1);
    if (!status.ok()) return status;
    auto seconds = meter.SecondsBetween(0, 1);
    if (!seconds.ok()) return seconds.status();
    times.push_back(*seconds);
  }
  return Median(std::move(times));
}

}  // namespace attention::bench
