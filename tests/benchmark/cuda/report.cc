#include "tests/benchmark/cuda/report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace attention::bench {
namespace {

std::string Microseconds(double seconds) {
  return seconds > 0 ? absl::StrFormat("%.1f", seconds * 1e6) : "-";
}

// work / seconds in units of `unit`.
std::string Rate(double work, double seconds, double unit) {
  return seconds > 0 ? absl::StrFormat("%.2f", work / seconds / unit) : "-";
}

std::string VerdictName(Verdict verdict) {
  switch (verdict) {
    case Verdict::kRight:
      return "right";
    case Verdict::kWrong:
      return "wrong";
    case Verdict::kAbsent:
      return "absent";
    case Verdict::kFailed:
      return "failed";
  }
  return "unknown";
}

std::string Share(const CaseResult& result) {
  const Roofline roofline = RooflineOf(result.work, result.ceilings);
  if (roofline.seconds <= 0 || result.ours().seconds <= 0) return "-";
  return absl::StrFormat("%.2f of %s", roofline.seconds / result.ours().seconds,
                         roofline.is_matrix ? "matrix" : "copy");
}

// The widest of a round's medians from the median of all.
std::string Spread(const Outcome& outcome) {
  if (outcome.seconds <= 0) return "-";
  const double most =
      std::max(outcome.most_seconds - outcome.seconds, outcome.seconds - outcome.least_seconds);
  return absl::StrFormat("%.1f %%", 100 * most / outcome.seconds);
}

// Each peer with its time and how many times as fast ours is, or what became of it.
std::string Peers(const CaseResult& result) {
  std::vector<std::string> texts;
  const double ours = result.ours().seconds;
  for (std::size_t i = 1; i < result.outcomes.size(); ++i) {
    const Outcome& peer = result.outcomes[i];
    if (peer.verdict == Verdict::kAbsent) continue;
    if (peer.seconds <= 0) {
      texts.push_back(absl::StrCat(peer.contender, " ", VerdictName(peer.verdict)));
    } else if (ours <= 0) {
      texts.push_back(absl::StrCat(peer.contender, " ", Microseconds(peer.seconds)));
    } else {
      texts.push_back(absl::StrFormat("%s %s (%.2f)", peer.contender, Microseconds(peer.seconds),
                                      peer.seconds / ours));
    }
  }
  if (result.beside_seconds > 0 && ours > 0) {
    texts.push_back(absl::StrFormat("%s %s (%.2f)", absl::StrJoin(result.bench_case.beside, " + "),
                                    Microseconds(result.beside_seconds),
                                    result.beside_seconds / ours));
  }
  return texts.empty() ? "-" : absl::StrJoin(texts, "; ");
}

constexpr char kLineFormat[] = "%-28s %10s %9s %7s %15s %8s  %s";

}  // namespace

std::string TableHeading() {
  return absl::StrFormat(kLineFormat, "case", "us", "TFLOP/s", "TB/s", "share", "spread",
                         "others, us (their time over ours)");
}

std::string TableLine(const CaseResult& result) {
  const Outcome& ours = result.ours();
  return absl::StrFormat(
      kLineFormat, result.bench_case.name,
      ours.verdict == Verdict::kRight ? Microseconds(ours.seconds) : VerdictName(ours.verdict),
      Rate(result.work.flops, ours.seconds, 1e12), Rate(result.work.bytes, ours.seconds, 1e12),
      Share(result), Spread(ours), Peers(result));
}

std::string RowLine(const CaseResult& result) {
  const Outcome& ours = result.ours();
  std::vector<std::string> details = {
      absl::StrCat(Rate(result.work.flops, ours.seconds, 1e12), " TFLOP/s"),
      absl::StrCat(Rate(result.work.bytes, ours.seconds, 1e12), " TB/s"), Share(result),
      Peers(result)};
  return absl::StrCat(
      "row|", HasWrong(result) ? "FAILED" : "measured", "|", result.bench_case.name, "|",
      ours.verdict == Verdict::kRight ? absl::StrCat(Microseconds(ours.seconds), " us")
                                      : VerdictName(ours.verdict),
      "|", absl::StrJoin(details, ", "));
}

nlohmann::json Record(const CaseResult& result) {
  nlohmann::json outcomes = nlohmann::json::array();
  for (const Outcome& outcome : result.outcomes) {
    outcomes.push_back({{"contender", outcome.contender},
                        {"verdict", VerdictName(outcome.verdict)},
                        {"text", outcome.text},
                        {"error_in_bounds", outcome.error},
                        {"seconds", outcome.seconds},
                        {"least_seconds", outcome.least_seconds},
                        {"most_seconds", outcome.most_seconds}});
  }
  const Ceilings& ceilings = result.ceilings;
  return {{"name", result.bench_case.name},
          {"flops", result.work.flops},
          {"bytes", result.work.bytes},
          {"roofline_seconds", RooflineOf(result.work, ceilings).seconds},
          {"beside", result.bench_case.beside},
          {"beside_seconds", result.beside_seconds},
          {"ceilings",
           {{"matrix_flops", ceilings.matrix_flops},
            {"loop_flops", ceilings.loop_flops},
            {"copy_bytes", ceilings.copy_bytes},
            {"read_bytes", ceilings.read_bytes},
            {"clock_hertz", ceilings.clock_hertz}}},
          {"outcomes", outcomes}};
}

std::string CeilingsLine(const Ceilings& ceilings, bool is_cold) {
  return absl::StrFormat(
      "ceilings: %s TFLOP/s of bfloat16 products (%s without a library), %s TB/s copied, %s read; "
      "clock %s MHz after matrix work; L2 %s",
      Rate(ceilings.matrix_flops, 1, 1e12), Rate(ceilings.loop_flops, 1, 1e12),
      Rate(ceilings.copy_bytes, 1, 1e12), Rate(ceilings.read_bytes, 1, 1e12),
      Rate(ceilings.clock_hertz, 1, 1e6),
      is_cold ? "cold: evicted before each repetition" : "warm: as the repetition before left it");
}

bool HasWrong(const CaseResult& result) {
  return std::any_of(result.outcomes.begin(), result.outcomes.end(),
                     [](const Outcome& outcome) { return outcome.verdict == Verdict::kWrong; });
}

}  // namespace attention::bench
