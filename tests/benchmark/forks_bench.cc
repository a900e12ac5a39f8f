// attention-bench-forks: one decode step of each of some forks of a prefix, in one batch, beside
// the same step of as many sequences that share no page. Both answer with the same bits, which is
// checked. Their ratio is that of two medians of one run, taken in turns.
//
// Beside it stand the bounds: unshared steps read every key once for each sequence, shared ones
// compute as many multiply-adds and read the prefix once.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/huge_page_memory.h"
#include "kernels/cpu/machine_ceilings.h"
#include "tests/benchmark/median.h"

namespace attention::bench {
namespace {

constexpr std::int64_t kPageSize = 256;
constexpr std::size_t kReadBytes = std::size_t{512} << 20;
constexpr double kLoopSeconds = 0.01;

struct Options {
  std::vector<int> forks = {16, 32, 128};
  std::vector<int> groups = {1, 4, 8};
  std::string dtype = "bfloat16";
  std::int64_t tokens = 32768;
  int kv_heads = 2;
  int head_dim = 128;
  int threads = 0;
  int rounds = 5;
  double max_gigabytes = 6;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

AttentionParams ParamsOf(const Options& options, int group) {
  DType dtype = DType::kBFloat16;
  for (DType known : {DType::kFloat32, DType::kFloat16, DType::kInt8, DType::kFloat8E4M3}) {
    if (options.dtype == DTypeName(known)) dtype = known;
  }
  AttentionParams params;
  params.num_q_heads = options.kv_heads * group;
  params.num_kv_heads = options.kv_heads;
  params.head_dim_qk = params.head_dim_v = options.head_dim;
  params.dtype = HasRowScales(dtype) ? DType::kBFloat16 : dtype;
  params.kv_dtype = dtype;
  params.softmax_scale = DefaultSoftmaxScale(options.head_dim);
  params.is_causal = true;
  return params;
}

// Pages of one sequence; each one filled with the keys and values of the first, but for the last,
// which has its own.
class Pages {
 public:
  Pages(AttentionBackend& backend, const AttentionParams& params, std::int64_t count)
      : backend_(backend),
        geometry_(params.kv_geometry()),
        page_bytes_(backend.PageLayout(geometry_, kPageSize).page_bytes),
        bytes_(count * page_bytes_),
        memory_(static_cast<char*>(backend.memory().Allocate(bytes_))) {
    if (memory_ == nullptr) Check(absl::ResourceExhaustedError("no memory for pages"));
  }
  ~Pages() { backend_.memory().Free(memory_, bytes_); }
  Pages(const Pages&) = delete;

  void* page(std::int64_t index) const { return memory_ + index * page_bytes_; }

  void Fill(std::int64_t index, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int row = geometry_.num_kv_heads * geometry_.head_dim_qk;
    std::vector<float> values(2 * kPageSize * row);
    for (float& value : values) value = normal(random);
    const auto rows = [&](std::int64_t at) {
      return DenseRows(static_cast<const void*>(values.data() + at), DType::kFloat32,
                       geometry_.num_kv_heads, geometry_.head_dim_qk);
    };
    void* table[] = {page(index)};
    const KvAppendTask append{.geometry = geometry_,
                              .destination = {table, 1, kPageSize},
                              .position = 0,
                              .num_tokens = kPageSize,
                              .k = rows(0),
                              .v = rows(kPageSize * row)};
    Check(backend_.AppendKv({&append, 1}));
  }

  void Copy(const void* from, std::int64_t index) { std::memcpy(page(index), from, page_bytes_); }

 private:
  AttentionBackend& backend_;
  const KvGeometry geometry_;
  const std::size_t page_bytes_;
  const std::size_t bytes_;
  char* const memory_;
};

// A decode step of each of `count` sequences.
class Steps {
 public:
  Steps(const AttentionParams& params, std::int64_t tokens, int count)
      : row_bytes_(static_cast<std::size_t>(params.num_q_heads) * params.head_dim_qk *
                   DTypeBytes(params.dtype)),
        tables_(count),
        q_(count * row_bytes_),
        o_(count * row_bytes_) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const std::int64_t elements = std::int64_t{count} * params.num_q_heads * params.head_dim_qk;
    for (std::int64_t i = 0; i < elements; ++i) {
      StoreElement(q_.data(), params.dtype, i, normal(random));
    }
    for (int i = 0; i < count; ++i) {
      AttentionTask& task = tasks_.emplace_back();
      task.params = params;
      task.q_len = 1;
      task.kv_len = tokens;
      task.first_query_position = tokens - 1;
      task.q = DenseRows(static_cast<const void*>(q_.data() + i * row_bytes_), params.dtype,
                         params.num_q_heads, params.head_dim_qk);
      task.o = DenseRows(static_cast<void*>(o_.data() + i * row_bytes_), params.dtype,
                         params.num_q_heads, params.head_dim_v);
    }
  }

  void SetTable(int sequence, std::vector<void*> table) {
    tables_[sequence] = std::move(table);
    tasks_[sequence].kv_pages = {tables_[sequence].data(),
                                 static_cast<std::int64_t>(tables_[sequence].size()), kPageSize};
  }

  double Run(AttentionBackend& backend) {
    const double start = cpu::WallSeconds();
    auto plan = backend.Plan(tasks_);
    Check(plan.status());
    Check(backend.Run(**plan));
    return cpu::WallSeconds() - start;
  }

  WorkEstimate work() const {
    WorkEstimate sum;
    for (const AttentionTask& task : tasks_) {
      const WorkEstimate one = EstimateWork(task);
      sum.flops += one.flops;
      sum.kv_bytes += one.kv_bytes;
    }
    return sum;
  }

  bool HasBitsOf(const Steps& other) const { return o_ == other.o_; }

 private:
  const std::size_t row_bytes_;
  std::vector<std::vector<void*>> tables_;
  std::vector<char> q_, o_;
  std::vector<AttentionTask> tasks_;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), kernels_(*cpu::ChooseKernels()), pool_(options.threads) {
    auto backend = cpu::MakeCpuBackend({.num_threads = options.threads});
    Check(backend.status());
    backend_ = std::move(*backend);
    if (!read_buffer_.Reserve(kReadBytes)) {
      Check(absl::ResourceExhaustedError("no memory for the read buffer"));
    }
    std::fill_n(read_buffer_.data(), kReadBytes, 1);
  }

  bool RunCase(int group, int forks) {
    const AttentionParams params = ParamsOf(options_, group);
    const std::int64_t num_pages = options_.tokens / kPageSize;
    Steps shared(params, options_.tokens, forks), apart(params, options_.tokens, forks);
    Pages prefix(*backend_, params, num_pages - 1), tails(*backend_, params, forks);
    for (std::int64_t i = 0; i < num_pages - 1; ++i) prefix.Fill(i, static_cast<unsigned>(i));
    for (int i = 0; i < forks; ++i) {
      tails.Fill(i, static_cast<unsigned>(num_pages + i));
      std::vector<void*> table;
      for (std::int64_t at = 0; at < num_pages - 1; ++at) table.push_back(prefix.page(at));
      table.push_back(tails.page(i));
      shared.SetTable(i, table);
    }
    const WorkEstimate work = apart.work();
    const bool fits = work.kv_bytes <= options_.max_gigabytes * 1e9;
    std::unique_ptr<Pages> copies;
    if (fits) copies = std::make_unique<Pages>(*backend_, params, num_pages * forks);
    for (int i = 0; i < forks && fits; ++i) {
      std::vector<void*> table;
      for (std::int64_t at = 0; at < num_pages; ++at) {
        const void* from = at + 1 < num_pages ? prefix.page(at) : tails.page(i);
        copies->Copy(from, i * num_pages + at);
        table.push_back(copies->page(i * num_pages + at));
      }
      apart.SetTable(i, table);
    }
    Measure(group, forks, work, &shared, fits ? &apart : nullptr);
    return !fits || shared.HasBitsOf(apart);
  }

 private:
  void Measure(int group, int forks, const WorkEstimate& work, Steps* shared, Steps* apart) {
    std::vector<double> shared_seconds, apart_seconds, flops, bytes;
    for (int round = 0; round <= options_.rounds; ++round) {
      const double shared_time = shared->Run(*backend_);
      const double apart_time = apart == nullptr ? 0 : apart->Run(*backend_);
      if (round == 0) continue;  // pages are touched for the first time
      shared_seconds.push_back(shared_time);
      apart_seconds.push_back(apart_time);
      flops.push_back(cpu::MeasureMultiplyAdd(kernels_, pool_, kLoopSeconds, cpu::WallSeconds));
      bytes.push_back(
          cpu::MeasureRead(kernels_, pool_, read_buffer_.data(), kReadBytes, cpu::WallSeconds));
    }
    const double seconds = Median(shared_seconds), unshared = Median(apart_seconds);
    const double peak = Median(flops), rate = Median(bytes);
    const double least_shared = std::max(work.flops / peak, work.kv_bytes / forks / rate);
    const double least_apart = std::max(work.flops / peak, work.kv_bytes / rate);
    std::printf("%5d %5d %10.1f %8.1f %% %10.1f %8.1f %% %7.2f %7.2f\n", group, forks,
                forks / seconds, 100 * least_shared / seconds,
                unshared > 0 ? forks / unshared : 0.0,
                unshared > 0 ? 100 * least_apart / unshared : 0.0,
                unshared > 0 ? unshared / seconds : 0.0, least_apart / least_shared);
    std::fflush(stdout);
  }

  const Options& options_;
  const cpu::KernelTable& kernels_;
  ThreadPool pool_;
  std::unique_ptr<AttentionBackend> backend_;
  cpu::HugePageBuffer read_buffer_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Measures decode steps of forks beside steps of sequences that share no page.");
  app.add_option("--forks", options.forks, "Numbers of forks, such as 16,128")->delimiter(',');
  app.add_option("--groups", options.groups, "Query heads of each KV head, such as 1,4,8")
      ->delimiter(',');
  app.add_option("--dtype", options.dtype, "The type of the cache")
      ->check(CLI::IsMember({"float32", "float16", "bfloat16", "int8", "float8_e4m3"}));
  app.add_option("--tokens", options.tokens, "Of each fork, a multiple of 256")
      ->check(CLI::Range(std::int64_t{512}, std::int64_t{1} << 24));
  app.add_option("--kv-heads", options.kv_heads)->check(CLI::PositiveNumber);
  app.add_option("--head-dim", options.head_dim)->check(CLI::Range(1, 512));
  app.add_option("--threads", options.threads, "0: one for each core")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--rounds", options.rounds)->check(CLI::PositiveNumber);
  app.add_option("--max-gigabytes", options.max_gigabytes,
                 "Sequences that share nothing are left out where they take more");
  app.set_version_flag("--version", "attention-bench-forks " ATTENTION_VERSION);
  CLI11_PARSE(app, argc, argv);
  if (options.threads == 0) {
    options.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  options.tokens = options.tokens / kPageSize * kPageSize;
  Bench bench(options);
  std::printf(
      "tokens/s of forks and of unshared sequences, each with its share of what the machine "
      "allows; their ratio, and that of the bounds\n");
  std::printf("%5s %5s %10s %10s %10s %10s %7s %7s\n", "group", "forks", "shared", "", "unshared",
              "", "ratio", "bound");
  bool is_equal = true;
  for (int group : options.groups) {
    for (int forks : options.forks) is_equal = bench.RunCase(group, forks) && is_equal;
  }
  if (!is_equal) std::fprintf(stderr, "the bits of a step depend on what it shares\n");
  return is_equal ? 0 : 1;
}

}  // namespace
}  // namespace attention::bench

int main(int argc, char** argv) { return attention::bench::Main(argc, argv); }
