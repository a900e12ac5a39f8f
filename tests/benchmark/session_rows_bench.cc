#include "tests/benchmark/session_rows_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/cpu/cpu_backend.h"
#include "server/cache/kv_cache_factory.h"
#include "tests/benchmark/median.h"

namespace attention::bench {
namespace {

using server::KvCache;
using server::LayerKeep;
using Clock = std::chrono::steady_clock;

// Keys and values of 32 MiB a layer in bfloat16: more than the caches of a processor's core hold.
constexpr int kHeads = 8, kDim = 128, kLayers = 4;
constexpr std::int64_t kTokens = 8192;

class RowsBench {
 public:
  RowsBench(DType dtype, int rounds)
      : dtype_(dtype), rounds_(rounds), backend_(*cpu::MakeCpuBackend({})) {}

  bool Run() {
    const KvGeometry geometry{kHeads, kDim, kDim, dtype_};
    token_bytes_ =
        static_cast<double>(StoredRowsLayout::Of(geometry, kTokens).bytes) / kTokens * kLayers;
    rows_.resize(StoredRowsLayout::Of(geometry, kTokens).bytes);
    Keep("keep every second token", [](std::int64_t token) { return token % 2 == 0; });
    Keep("keep 3 of 4, in runs of 64", [](std::int64_t token) { return token % 256 >= 64; });
    Keep("keep the first 4 and the last half",
         [](std::int64_t token) { return token < 4 || token >= kTokens / 2; });
    Move("read all rows", &AttentionBackend::ReadRows);
    Move("write all rows", &AttentionBackend::WriteRows);
    return is_ok_;
  }

 private:
  std::shared_ptr<KvCache> Filled() {
    auto cache = *factory_.Create({kHeads, kDim, kDim, dtype_}, kLayers, 0);
    const std::vector<std::uint32_t> checksums(kTokens);
    for (int layer = 0; layer < kLayers; ++layer) {
      is_ok_ = cache->Extend(layer, kTokens).ok() && is_ok_;
      cache->Append(layer, checksums);
    }
    return cache;
  }

  void Keep(const char* name, const std::function<bool(std::int64_t)>& stays) {
    LayerKeep keep{0, 0, {{}}};
    for (std::int64_t token = 0; token < kTokens; ++token) {
      if (stays(token)) keep.tokens[0].push_back(token);
    }
    std::vector<LayerKeep> layers(kLayers, keep);
    for (int layer = 0; layer < kLayers; ++layer) layers[layer].layer = layer;
    std::shared_ptr<KvCache> cache;
    Print(
        name, 2 * static_cast<double>(keep.tokens[0].size()), [&] { cache = Filled(); },
        [&] { return cache->Keep(*backend_, layers, server::PageTables::Positions::kStay); });
  }

  void Move(const char* name,
            absl::Status (AttentionBackend::*move)(std::span<const StoredRowsTask>)) {
    const std::shared_ptr<KvCache> cache = Filled();
    const KvGeometry& geometry = cache->geometry(0);
    Print(
        name, 2.0 * kTokens, [] {},
        [&] {
          for (int layer = 0; layer < kLayers; ++layer) {
            const StoredRowsTask task{geometry, cache->View(layer), 0, kTokens,
                                      StoredRowsIn(geometry, kTokens, rows_.data())};
            const absl::Status status = (*backend_.*move)({&task, 1});
            if (!status.ok()) return status;
          }
          return absl::OkStatus();
        });
  }

  // `tokens`: that are read and written. Beside it the time in which as many bytes are copied as
  // they are, in turns.
  void Print(const char* name, double tokens, const std::function<void()>& prepare,
             const std::function<absl::Status()>& run) {
    std::vector<double> seconds, copies;
    for (int round = 0; round < rounds_; ++round) {
      prepare();
      seconds.push_back(Seconds([&] { is_ok_ = run().ok() && is_ok_; }));
      copies.push_back(Seconds([&] { CopyBytes(tokens / 2 * token_bytes_); }));
    }
    const double bytes = tokens * token_bytes_;
    std::printf("%-12s %-36s %8.2f GB/s %8.2f of a copy\n", std::string(DTypeName(dtype_)).c_str(),
                name, bytes / Median(seconds) * 1e-9, Median(copies) / Median(seconds));
  }

  static double Seconds(const std::function<void()>& run) {
    const Clock::time_point begin = Clock::now();
    run();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  // Pages to pages, by as many threads as move rows.
  void CopyBytes(double bytes) {
    constexpr std::size_t kPiece = std::size_t{1} << 20;
    const auto count = static_cast<std::int64_t>(bytes / kPiece);
    source_.resize(static_cast<std::size_t>(count) * kPiece, 1);
    target_.resize(source_.size(), 2);
    pool_.ParallelFor(count, [&](std::int64_t i, int) {
      std::memcpy(target_.data() + i * kPiece, source_.data() + i * kPiece, kPiece);
    });
  }

  const DType dtype_;
  const int rounds_;
  std::unique_ptr<AttentionBackend> backend_;
  ThreadPool pool_{backend_->info().num_threads};
  server::PagePool pages_{backend_->memory(), std::size_t{2} << 30};
  const server::KvCacheFactory factory_{{{*backend_, pages_}}, /*page_size=*/64};
  double token_bytes_ = 0;  // of all layers
  std::vector<std::byte> rows_;
  std::vector<char> source_, target_;
  bool is_ok_ = true;
};

}  // namespace

bool RunRowsBench(int rounds) {
  std::printf("\n%lld tokens, %d layers of %d KV heads of %d; bytes read and written\n",
              static_cast<long long>(kTokens), kLayers, kHeads, kDim);
  bool is_ok = true;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
    is_ok = RowsBench(dtype, rounds).Run() && is_ok;
  }
  return is_ok;
}

}  // namespace attention::bench
