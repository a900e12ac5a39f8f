// attention-bench-sessions: what it costs a worker to fork, truncate and reorder caches of long
// sessions, and how many bytes of keys and values it copies for that. Rows are narrow, since only
// the number of pages counts; page tables are those of the server's defaults.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "server/cache/kv_cache_factory.h"
#include "tests/benchmark/median.h"
#include "tests/benchmark/session_rows_bench.h"
#include "tests/support/forwarding_backend.h"

namespace attention::bench {
namespace {

using server::KvCache;
using server::KvCacheFactory;
using server::PagePool;
using Clock = std::chrono::steady_clock;

struct Options {
  std::int64_t tokens = 32768;
  int layers = 32;
  int copies = 16;
  int rounds = 20;
  bool with_rows = true;
};

// Counts the bytes of pages that are copied.
class CountingBackend final : public testing::ForwardingBackend {
 public:
  CountingBackend() : ForwardingBackend(*cpu::MakeCpuBackend({.num_threads = 1})) {}
  absl::Status CopyPages(std::span<const DevicePageCopy> copies) override {
    for (const DevicePageCopy& copy : copies) bytes += static_cast<std::int64_t>(copy.bytes);
    return ForwardingBackend::CopyPages(copies);
  }
  std::int64_t bytes = 0;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}

  bool Run() {
    std::printf("%lld tokens, %d layers, pages of 64 tokens; median of %d rounds\n",
                static_cast<long long>(options_.tokens), options_.layers, options_.rounds);
    std::printf("%-44s %12s %14s\n", "", "us each", "bytes copied");
    const std::int64_t drafts = options_.tokens - 8;
    Print("first fork of a session", 1, [&] {
      source_ = Filled();
      return [this] { Fork(1); };
    });
    Print("fork of a session that has forks", 1, [&] { return [this] { Fork(1); }; });
    Print("fork, each of many copies in a call", options_.copies,
          [&] { return [this] { Fork(options_.copies); }; });
    Print("first token of a copy, each layer", options_.layers, [&] {
      Fork(1);
      return [this] { AppendToken(*copies_[0]); };
    });
    Print("truncate, 8 drafts", 1, [&] {
      source_ = Filled();
      return [this, drafts] { source_->Truncate(drafts); };
    });
    Print("truncate, half of what others share", 1, [&] {
      Fork(1);
      return [this] { copies_[0]->Truncate(options_.tokens / 2); };
    });
    Print("reorder of 4 beams to one", 4, [&] {
      Fork(4);
      return [this] { KvCache::Reorder(copies_, std::vector<std::size_t>{1, 1, 1, 1}); };
    });
    return is_ok_;
  }

 private:
  std::shared_ptr<KvCache> Filled() {
    source_.reset();
    copies_.clear();
    auto cache = *factory_.Create({1, 8, 8, DType::kBFloat16}, options_.layers, 0);
    const std::vector<std::uint32_t> checksums(static_cast<std::size_t>(options_.tokens));
    for (int layer = 0; layer < options_.layers; ++layer) {
      is_ok_ = cache->Extend(layer, options_.tokens).ok() && is_ok_;
      cache->Append(layer, checksums);
    }
    return cache;
  }
  void Fork(int num_copies) {
    for (int i = 0; i < num_copies; ++i) {
      copies_.push_back(factory_.CreateLike(*source_));
      source_->ForkTo(*copies_.back(), options_.tokens - 1);
    }
  }
  void AppendToken(KvCache& cache) {
    const std::uint32_t checksum = 0;
    for (int layer = 0; layer < options_.layers; ++layer) {
      is_ok_ = cache.OwnTail(backend_, layer).ok() && is_ok_;
      is_ok_ = cache.Extend(layer, cache.length(layer) + 1).ok() && is_ok_;
      cache.Append(layer, {&checksum, 1});
    }
  }

  // `prepare` returns what is measured; `count`: by how much the time is divided.
  void Print(const char* name, int count, const std::function<std::function<void()>()>& prepare) {
    std::vector<double> microseconds;
    std::int64_t bytes = 0;
    for (int round = 0; round < options_.rounds; ++round) {
      copies_.clear();
      if (source_ == nullptr) source_ = Filled();
      const std::function<void()> run = prepare();
      backend_.bytes = 0;
      const Clock::time_point begin = Clock::now();
      run();
      const std::chrono::duration<double, std::micro> elapsed = Clock::now() - begin;
      microseconds.push_back(elapsed.count() / count);
      bytes = backend_.bytes;
    }
    std::printf("%-44s %12.1f %14lld\n", name, Median(microseconds), static_cast<long long>(bytes));
  }

  const Options options_;
  CountingBackend backend_;
  PagePool pool_{backend_.memory(), std::size_t{4} << 30};
  const KvCacheFactory factory_{{{backend_, pool_}}, /*page_size=*/64};
  std::shared_ptr<KvCache> source_;
  std::vector<std::shared_ptr<KvCache>> copies_;
  bool is_ok_ = true;
};

int Main(int argc, char** argv) {
  CLI::App app("Forks, truncations and reorders of long sessions.");
  app.set_version_flag("--version", "attention-bench-sessions " ATTENTION_VERSION);
  Options options;
  app.add_option("--tokens", options.tokens, "Of each layer")->check(CLI::Range(64, 1 << 20));
  app.add_option("--layers", options.layers)->check(CLI::Range(1, 1024));
  app.add_option("--copies", options.copies, "Of one call")->check(CLI::Range(1, 1024));
  app.add_option("--rounds", options.rounds)->check(CLI::Range(1, 100000));
  app.add_flag("!--no-rows", options.with_rows, "Leave the moving of rows out");
  CLI11_PARSE(app, argc, argv);
  if (Bench(options).Run() && (!options.with_rows || RunRowsBench(options.rounds))) return 0;
  std::fprintf(stderr, "there is not enough memory for such sessions\n");
  return 1;
}

}  // namespace
}  // namespace attention::bench

int main(int argc, char** argv) { return attention::bench::Main(argc, argv); }
