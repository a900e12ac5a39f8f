#include "tests/benchmark/cuda/bench_main.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/benchmark/cuda/measure.h"
#include "tests/benchmark/cuda/report.h"

namespace attention::bench {
namespace {

constexpr int kSkipped = 77;

struct Options {
  std::string filter, json_path, cache = "cold";
  std::vector<std::string> notes;
  std::vector<std::string> sizes;
  bool is_small = false, is_listing = false;
  int ordinal = 0;
  double max_seconds = 0;
  MeasureOptions measure;
};

void AddOptions(CLI::App& app, Options* options) {
  app.add_option("--filter", options->filter, "Only groups with a case whose name contains this");
  app.add_option("--json", options->json_path, "Write what was found to this file");
  app.add_option("--l2", options->cache, "State of the L2 cache: cold, or warm")
      ->check(CLI::IsMember({"cold", "warm"}));
  app.add_option("--rounds", options->measure.rounds, "Turns of each contender")
      ->check(CLI::PositiveNumber);
  app.add_option("--turn-seconds", options->measure.turn_seconds, "Device time of a turn")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--max-seconds", options->max_seconds,
                 "Begin no group after so long; those left out are named")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--shape", options->sizes,
                 "This case alone, causal: BATCH,Q_HEADS,KV_HEADS,Q_LEN,KV_LEN,HEAD_DIM")
      ->delimiter(',')
      ->expected(6);
  app.add_option("--device", options->ordinal, "Ordinal of the GPU");
  app.add_option("--note", options->notes, "A line to print and record; may be repeated");
  app.add_flag("--small", options->is_small, "Sizes that a host computes too");
  app.add_flag("--list", options->is_listing, "Print the names of the cases, and run none");
}

Group ShapeGroup(const std::vector<std::string>& sizes) {
  const auto size = [&](int i) { return std::stoll(sizes[i]); };
  return {{.name = "shape",
           .parts = {{.batch_size = static_cast<int>(size(0)),
                      .num_q_heads = static_cast<int>(size(1)),
                      .num_kv_heads = static_cast<int>(size(2)),
                      .q_len = size(3),
                      .kv_len = size(4),
                      .head_dim = static_cast<int>(size(5))}}}};
}

bool IsWanted(const Group& group, const std::string& filter) {
  for (const Case& bench_case : group) {
    if (bench_case.name.find(filter) != std::string::npos) return true;
  }
  return false;
}

std::vector<Group> ChosenGroups(const Options& options) {
  if (!options.sizes.empty()) return {ShapeGroup(options.sizes)};
  std::vector<Group> chosen;
  for (const Group& group : options.is_small ? SmallGroups() : AllGroups()) {
    if (IsWanted(group, options.filter)) chosen.push_back(group);
  }
  return chosen;
}

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

absl::StatusOr<Bench> MakeBench(const Options& options, std::span<const AttentionBenchPeer> peers,
                                std::shared_ptr<cuda::Device> device) {
  Bench bench;
  bench.device = std::move(device);
  bench.meter = bench.device->MakeMeter();
  if (bench.meter == nullptr) return absl::UnavailableError("the device has no meter");
  bench.peers = peers;
  bench.options = options.measure;
  bench.options.is_cold = options.cache == "cold";
  auto library = LoadCublas(*bench.device, bench.meter->stream());
  if (library.ok()) {
    bench.library = *std::move(library);
  } else {
    std::printf("skipped: cuBLAS: %s\n", std::string(library.status().message()).c_str());
  }
  return bench;
}

// Exit status, and what was found.
struct Findings {
  int status = 0;
  nlohmann::json records = nlohmann::json::array();
  std::vector<std::string> rows;
};

void Take(const std::vector<CaseResult>& results, bool is_cold, Findings* findings) {
  std::printf("%s\n", CeilingsLine(results.front().ceilings, is_cold).c_str());
  for (const CaseResult& result : results) {
    std::printf("%s\n", TableLine(result).c_str());
    findings->rows.push_back(RowLine(result));
    findings->records.push_back(Record(result));
    if (HasWrong(result)) findings->status = 1;
  }
  std::fflush(stdout);
}

Findings RunGroups(const Bench& bench, const std::vector<Group>& groups, double max_seconds) {
  Findings findings;
  const double begin = Seconds();
  std::printf("%s\n", TableHeading().c_str());
  for (const Group& group : groups) {
    if (max_seconds > 0 && Seconds() - begin > max_seconds) {
      findings.rows.push_back("row|skipped|" + group.front().name + "|-|no time was left");
      continue;
    }
    auto results = MeasureGroup(bench, group);
    if (results.ok()) {
      Take(*results, bench.options.is_cold, &findings);
      continue;
    }
    const std::string reason(results.status().message());
    findings.rows.push_back("row|FAILED|" + group.front().name + "|-|" + reason);
    findings.status = 1;
    // A fault of a kernel stays (device.h): the others would fail by it.
    if (!absl::IsResourceExhausted(results.status())) break;
  }
  return findings;
}

int Run(const Options& options, std::span<const AttentionBenchPeer> peers) {
  const std::vector<Group> groups = ChosenGroups(options);
  if (options.is_listing) {
    for (const Group& group : groups) {
      for (const Case& bench_case : group) std::printf("%s\n", bench_case.name.c_str());
    }
    return 0;
  }
  for (const std::string& note : options.notes) std::printf("%s\n", note.c_str());
  auto device = OpenBenchDevice(options.ordinal);
  if (!device.ok()) {
    std::printf("skipped: %s\n", std::string(device.status().message()).c_str());
    return kSkipped;
  }
  const cuda::DeviceProperties properties = (*device)->properties();
  auto bench = MakeBench(options, peers, *std::move(device));
  absl::StatusOr<double> marks = bench.ok() ? MeasureMarks(*bench->meter) : bench.status();
  if (!marks.ok()) {
    std::printf("%s\n", std::string(marks.status().message()).c_str());
    return 1;
  }
  std::printf("on %s (%s); each time has %.1f us of the marks around it\n", properties.name.c_str(),
              properties.architecture.c_str(), *marks * 1e6);
  const Findings findings = RunGroups(*bench, groups, options.max_seconds);
  for (const std::string& row : findings.rows) std::printf("%s\n", row.c_str());
  if (options.json_path.empty()) return findings.status;
  std::ofstream file(options.json_path);
  file << nlohmann::json{{"device", properties.name}, {"architecture", properties.architecture},
                         {"l2", options.cache},       {"marks_seconds", *marks},
                         {"notes", options.notes},    {"records", findings.records}}
              .dump(2)
       << "\n";
  return file.good() ? findings.status : 1;
}

}  // namespace

int BenchMain(int argc, const char* const* argv, std::span<const AttentionBenchPeer> peers) {
  Options options;
  CLI::App app("Measures the CUDA kernels, and peers where there are any, in the device's time.");
  app.set_version_flag("--version", "attention-bench-cuda " ATTENTION_VERSION);
  AddOptions(app, &options);
  CLI11_PARSE(app, argc, const_cast<char**>(argv));
  return Run(options, peers);
}

}  // namespace attention::bench

int AttentionBenchMain(int argc, const char* const* argv, const AttentionBenchPeer* peers,
                       int num_peers) {
  return attention::bench::BenchMain(argc, argv, {peers, static_cast<std::size_t>(num_peers)});
}
