// attention-bench: how fast the CPU kernels are, and how near to what this machine can do.
//
// Ceilings (multiply-add, bfloat16 dot product, memory read) are measured in the same run, again
// beside each case, because a shared machine does not keep its speed. A rate is the median of its
// repetitions, a share its quotient with the median of the ceilings taken between them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/huge_page_memory.h"
#include "kernels/cpu/machine_ceilings.h"
#include "tests/benchmark/bench_case.h"
#include "tests/benchmark/median.h"

namespace attention::bench {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kReadBytes = std::size_t{512} << 20;
constexpr double kLoopSeconds = 0.01;
constexpr double kCeilingEverySeconds = 0.15;

struct Options {
  std::string json_path;
  std::vector<std::string> filters;
  double min_time = 1.0;
  std::vector<int> threads;
  std::vector<CaseSpec> cases;
  std::string clock = "wall";
  std::string bfloat16_dot = "auto";
};

struct Ceiling {
  std::string name;  // "fma", "bf16_dot", "memory_read"
  std::string metric;
  double value = 0;
};

// The causal case named "shape" of {batch, q_heads, kv_heads, q_len, kv_len, head_dim}.
CaseSpec CaseOf(const std::vector<std::int64_t>& shape) {
  return {.name = "shape",
          .batch_size = static_cast<int>(shape[0]),
          .num_q_heads = static_cast<int>(shape[1]),
          .num_kv_heads = static_cast<int>(shape[2]),
          .q_len = shape[3],
          .kv_len = shape[4],
          .head_dim = static_cast<int>(shape[5]),
          .is_causal = true,
          .bound = shape[3] == 1 ? Bound::kMemory : Bound::kArithmetic};
}

std::unique_ptr<AttentionBackend> MakeBackend(int threads, const Options& options) {
  const auto dot = options.bfloat16_dot == "always"  ? cpu::BFloat16Dot::kAlways
                   : options.bfloat16_dot == "never" ? cpu::BFloat16Dot::kNever
                                                     : cpu::BFloat16Dot::kWhereFaster;
  auto backend = cpu::MakeCpuBackend({.num_threads = threads, .bfloat16_dot = dot});
  if (backend.ok()) return std::move(*backend);
  std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
  std::exit(1);
}

// Everything that is measured with one number of threads.
class Bench {
 public:
  Bench(int threads, const char* read_buffer, const Options& options)
      : threads_(threads),
        options_(options),
        clock_(options.clock == "cpu" ? cpu::ProcessorSeconds : cpu::WallSeconds),
        rate_factor_((options.clock == "cpu" ? threads : 1) / 1e9),
        read_buffer_(read_buffer),
        kernels_(*cpu::ChooseKernels()),
        pool_(threads),
        backend_(MakeBackend(threads, options)) {}

  const BackendInfo& info() const { return backend_->info(); }

  void RunAll(Json* records) {
    for (const char* name : {"fma", "bf16_dot", "memory_read"}) Report(name, records);
    for (const CaseSpec& spec : options_.cases) {
      for (DType dtype : {DType::kFloat32, DType::kBFloat16}) RunCase(spec, dtype, records);
      if (!spec.is_decode()) continue;
      for (DType dtype : {DType::kInt8, DType::kFloat8E4M3}) RunCase(spec, dtype, records);
    }
  }

 private:
  bool IsWanted(const std::string& name) const {
    const std::vector<std::string>& filters = options_.filters;
    return filters.empty() ||
           std::any_of(filters.begin(), filters.end(), [&name](const std::string& filter) {
             return name.find(filter) != std::string::npos;
           });
  }

  Ceiling Measure(const std::string& name) {
    if (name == "fma") {
      return {name, "GFLOP/s",
              cpu::MeasureMultiplyAdd(kernels_, pool_, kLoopSeconds, clock_) * rate_factor_};
    }
    if (name == "bf16_dot") {
      return {name, "GFLOP/s", cpu::MeasureBFloat16Dot(pool_, kLoopSeconds, clock_) * rate_factor_};
    }
    return {name, "GB/s",
            cpu::MeasureRead(kernels_, pool_, read_buffer_, kReadBytes, clock_) * rate_factor_};
  }

  void Report(const std::string& name, Json* records) {
    std::vector<double> values;
    Ceiling ceiling;
    for (int i = 0; i < 5; ++i) {
      ceiling = Measure(name);
      values.push_back(ceiling.value);
    }
    ceiling.value = Median(values);
    if (ceiling.value == 0) return;
    Print(name, "-", ceiling, ceiling.value, 0, 5);
    records->push_back(Record(name, "-", ceiling, ceiling.value, 0, 5));
  }

  void RunCase(const CaseSpec& spec, DType dtype, Json* records) {
    const std::string dtype_name(DTypeName(dtype));
    if (!IsWanted(spec.name + "/" + dtype_name)) return;
    std::string ceiling_name = spec.bound == Bound::kMemory ? "memory_read" : "fma";
    // The ceiling is the fastest 16-bit arithmetic, whether or not the kernels use it. On some
    // processors (Emerald Rapids here) the dot product instruction is no faster than float32
    // multiply-adds.
    if (spec.bound == Bound::kArithmetic && dtype != DType::kFloat32 &&
        Measure("bf16_dot").value > Measure("fma").value) {
      ceiling_name = "bf16_dot";
    }
    BenchCase bench_case(spec, dtype, *backend_);
    const double work =
        spec.bound == Bound::kMemory ? bench_case.work().kv_bytes : bench_case.work().flops;
    bench_case.Run();
    std::vector<double> rates, ceilings;
    const double end = cpu::WallSeconds() + options_.min_time;
    double next_ceiling = 0;
    Ceiling ceiling;
    do {
      if (cpu::WallSeconds() >= next_ceiling) {
        ceiling = Measure(ceiling_name);
        ceilings.push_back(ceiling.value);
        next_ceiling = cpu::WallSeconds() + kCeilingEverySeconds;
      }
      const double start = clock_();
      bench_case.Run();
      rates.push_back(work / (clock_() - start) * rate_factor_);
    } while (cpu::WallSeconds() < end);
    ceiling.value = Median(ceilings);
    const double value = Median(rates);
    const double seconds = work / value * rate_factor_;
    Print(spec.name, dtype_name, ceiling, value, seconds, rates.size());
    records->push_back(Record(spec.name, dtype_name, ceiling, value, seconds, rates.size()));
  }

  void Print(const std::string& name, const std::string& dtype, const Ceiling& ceiling,
             double value, double seconds, std::size_t repetitions) const {
    std::printf("%-12s %-9s %7d %9.1f %-8s %9.1f %-11s %6.1f %% %11.1f %6zu\n", name.c_str(),
                dtype.c_str(), threads_, value, ceiling.metric.c_str(), ceiling.value,
                ceiling.name.c_str(), 100 * value / ceiling.value, seconds * 1e6, repetitions);
    std::fflush(stdout);
  }

  Json Record(const std::string& name, const std::string& dtype, const Ceiling& ceiling,
              double value, double seconds, std::size_t repetitions) const {
    return {{"name", name},
            {"dtype", dtype},
            {"threads", threads_},
            {"metric", ceiling.metric},
            {"value", value},
            {"ceiling_name", ceiling.name},
            {"ceiling", ceiling.value},
            {"share", value / ceiling.value},
            {"seconds", seconds},
            {"repetitions", repetitions}};
  }

  int threads_;
  const Options& options_;
  cpu::Clock clock_;
  double rate_factor_;  // to giga-units per second of all threads
  const char* read_buffer_;
  const cpu::KernelTable& kernels_;
  ThreadPool pool_;
  std::unique_ptr<AttentionBackend> backend_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Measures the CPU attention kernels against the ceilings of this machine.");
  app.add_option("--json", options.json_path, "Write one record per case to this file");
  app.add_option("--filter", options.filters,
                 "Only cases whose NAME/DTYPE contains one of these, such as D4/,L1/")
      ->delimiter(',');
  app.add_option("--min-time", options.min_time, "Seconds for each case")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--threads", options.threads, "Numbers of threads, such as 1,2")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--bfloat16-dot", options.bfloat16_dot,
                 "Whether bfloat16 uses the dot product instruction")
      ->check(CLI::IsMember({"auto", "never", "always"}));
  std::vector<std::int64_t> shape;
  app.add_option("--shape", shape, "This case alone: BATCH,Q_HEADS,KV_HEADS,Q_LEN,KV_LEN,HEAD_DIM")
      ->delimiter(',')
      ->expected(6)
      ->check(CLI::PositiveNumber);
  app.add_option("--clock", options.clock,
                 "wall, or cpu: processor time, for machines that other work shares")
      ->check(CLI::IsMember({"wall", "cpu"}));
  app.set_version_flag("--version", "attention-bench " ATTENTION_VERSION);
  CLI11_PARSE(app, argc, argv);
  options.cases = shape.empty() ? AllCases() : std::vector<CaseSpec>{CaseOf(shape)};
  if (shape.empty()) {
    options.cases.insert(options.cases.end(), WideCases().begin(), WideCases().end());
  }
  if (options.threads.empty()) {
    options.threads = {1};
    const int all = static_cast<int>(std::thread::hardware_concurrency());
    if (all > 1) options.threads.push_back(all);
  }
  cpu::HugePageBuffer read_buffer;
  if (!read_buffer.Reserve(kReadBytes)) {
    std::fprintf(stderr, "no memory for the read buffer of %zu bytes\n", kReadBytes);
    return 1;
  }
  std::fill_n(read_buffer.data(), kReadBytes, 1);
  Json records = Json::array();
  BackendInfo info;
  std::printf("%-12s %-9s %7s %9s %-8s %9s %-11s %8s %11s %6s\n", "case", "dtype", "threads",
              "value", "metric", "ceiling", "", "share", "us", "runs");
  for (int threads : options.threads) {
    Bench bench(threads, read_buffer.data(), options);
    info = bench.info();
    bench.RunAll(&records);
  }
  std::printf("device: %s, %s\n", info.device.c_str(), info.isa.c_str());
  if (options.json_path.empty()) return 0;
  std::ofstream file(options.json_path);
  file << Json{{"device", info.device}, {"isa", info.isa}, {"records", records}}.dump(2) << "\n";
  return file.good() ? 0 : 1;
}

}  // namespace
}  // namespace attention::bench

int main(int argc, char** argv) { return attention::bench::Main(argc, argv); }
