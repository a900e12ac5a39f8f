#include "server/cache/kv_cache_factory.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr int kMaxLayers = 1024;

// A cache serves any number of query heads; one for each KV head checks the rest.
AttentionParams ParamsOf(const KvGeometry& geometry) {
  AttentionParams params;
  params.num_q_heads = params.num_kv_heads = geometry.num_kv_heads;
  params.head_dim_qk = geometry.head_dim_qk;
  params.head_dim_v = geometry.head_dim_v;
  params.value_is_key_prefix = geometry.value_is_key_prefix;
  return params;
}

absl::Status CheckExpectedTokens(std::int64_t tokens) {
  if (tokens >= 0 && tokens <= kMaxPosition) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("expected_tokens is ", tokens, ", expected 0 to ", kMaxPosition));
}

// How the geometry of one of CacheShape::said() is named in errors.
std::string NameOf(const CacheShape& shape, std::size_t index) {
  return shape.is_uniform() ? "geometry" : absl::StrCat("geometry.layers[", index, "]");
}

// The same error, naming the layer.
absl::Status AtLayer(const CacheShape& shape, std::size_t index, const absl::Status& status) {
  if (shape.is_uniform()) return status;
  return absl::Status(status.code(), absl::StrCat(NameOf(shape, index), ": ", status.message()));
}

absl::Status CheckLayer(const std::string& name, const LayerShape& layer) {
  const KvGeometry& geometry = layer.geometry;
  if (geometry.num_kv_heads < 1 || geometry.num_kv_heads > kMaxHeads) {
    return absl::InvalidArgumentError(absl::StrCat(name, ".num_kv_heads is ", geometry.num_kv_heads,
                                                   ", expected 1 to ", kMaxHeads));
  }
  const absl::Status status = ValidateHeads(ParamsOf(geometry));
  if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ".", status.message()));
  const auto check = [&](absl::string_view field, std::int64_t tokens, std::int64_t most) {
    if (tokens >= 0 && tokens <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, ".", field, " is ", tokens, ", expected ",
                     most == 0 ? "0 without window_tokens" : absl::StrCat("0 to ", most)));
  };
  ATTENTION_RETURN_IF_ERROR(check("window_tokens", layer.window_tokens, kMaxPosition));
  return check("sink_tokens", layer.sink_tokens, layer.has_window() ? kMaxPosition : 0);
}

absl::Status CheckShape(const CacheShape& shape) {
  if (shape.num_layers() < 1 || shape.num_layers() > kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat(
        shape.is_uniform() ? "geometry.num_layers is " : "the number of geometry.layers is ",
        shape.num_layers(), ", expected 1 to ", kMaxLayers));
  }
  for (std::size_t i = 0; i < shape.said().size(); ++i) {
    ATTENTION_RETURN_IF_ERROR(CheckLayer(NameOf(shape, i), shape.said()[i]));
  }
  return absl::OkStatus();
}

// The bytes that a device could still hold. A cache counts before it has its first page: sessions
// are often made many at a time, so this may be negative.
std::int64_t RoomOf(const PagePool& pool) {
  return static_cast<std::int64_t>(pool.capacity_bytes()) -
         static_cast<std::int64_t>(pool.used_bytes()) -
         static_cast<std::int64_t>(pool.num_caches()) *
             static_cast<std::int64_t>(pool.chunk_bytes());
}

}  // namespace

absl::StatusOr<std::shared_ptr<KvCache>> KvCacheFactory::Create(const CacheShape& shape,
                                                                std::int64_t expected_tokens,
                                                                const std::string& tenant) const {
  ATTENTION_RETURN_IF_ERROR(CheckShape(shape));
  ATTENTION_RETURN_IF_ERROR(CheckExpectedTokens(expected_tokens));
  ATTENTION_ASSIGN_OR_RETURN(const int device, ChoosePlace(shape, expected_tokens));
  const Place& place = places_[device];
  ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<const CacheLayout> layout, LayoutOf(place, shape));
  ATTENTION_RETURN_IF_ERROR(CheckRoom(place, *layout, expected_tokens, tenant));
  auto cache =
      std::make_shared<KvCache>(place.pool, device, std::move(layout), CacheOwner{tenant, ledger_});
  if (place.caches != nullptr) place.caches->Add(cache);
  return cache;
}

std::shared_ptr<KvCache> KvCacheFactory::CreateLike(const KvCache& cache) const {
  const Place& place = places_[cache.device()];
  auto made = std::make_shared<KvCache>(place.pool, cache.device(), cache.layout(), cache.owner());
  if (place.caches != nullptr) place.caches->Add(made);
  return made;
}

absl::StatusOr<int> KvCacheFactory::ChoosePlace(const CacheShape& shape,
                                                std::int64_t expected_tokens) const {
  const auto check = [&](const Place& place) {
    for (std::size_t i = 0; i < shape.said().size(); ++i) {
      const absl::Status status =
          place.backend.Supports(ParamsOf(shape.said()[i].geometry), expected_tokens);
      if (!status.ok()) return AtLayer(shape, i, status);
    }
    return absl::OkStatus();
  };
  absl::StatusOr<int> chosen = absl::InternalError("there is no device");
  for (std::size_t i = 0; i < places_.size(); ++i) {
    if (absl::Status status = check(places_[i]); !status.ok()) {
      if (!chosen.ok()) chosen = std::move(status);
    } else if (!chosen.ok() || RoomOf(places_[i].pool) > RoomOf(places_[*chosen].pool)) {
      chosen = static_cast<int>(i);
    }
  }
  return chosen;
}

absl::StatusOr<std::shared_ptr<const CacheLayout>> KvCacheFactory::LayoutOf(
    const Place& place, const CacheShape& shape) const {
  constexpr std::size_t kMaxLayouts = 16;
  auto layout = std::make_shared<CacheLayout>(CacheLayout{shape, {}});
  for (std::size_t i = 0; i < shape.said().size(); ++i) {
    const absl::StatusOr<KvPageLayout> pages =
        KvCache::ChooseLayout(place.backend, shape.said()[i], page_size_, place.pool.chunk_bytes());
    if (!pages.ok()) return AtLayer(shape, i, pages.status());
    layout->pages.push_back(*pages);
  }
  MutexLock lock(&mutex_);
  for (const std::weak_ptr<const CacheLayout>& last : last_layouts_) {
    if (auto known = last.lock(); known != nullptr && known->IsSaidAs(*layout)) return known;
  }
  if (last_layouts_.size() == kMaxLayouts) last_layouts_.pop_front();
  last_layouts_.push_back(layout);
  return layout;
}

std::int64_t KvCacheFactory::capacity_bytes() const {
  std::int64_t sum = 0;
  for (const Place& place : places_) sum += static_cast<std::int64_t>(place.pool.capacity_bytes());
  return sum;
}

std::int64_t KvCacheFactory::free_bytes() const {
  std::int64_t sum = 0;
  for (const Place& place : places_) sum += static_cast<std::int64_t>(place.pool.free_bytes());
  return sum;
}

std::int64_t KvCacheFactory::used_bytes() const {
  std::int64_t sum = 0;
  for (const Place& place : places_) sum += static_cast<std::int64_t>(place.pool.used_bytes());
  return sum;
}

absl::Status KvCacheFactory::CheckRoom(const Place& place, const CacheLayout& layout,
                                       std::int64_t expected_tokens,
                                       const std::string& tenant) const {
  const PagePool& pool = place.pool;
  std::map<std::size_t, std::size_t> counts;  // of pages, by their bytes
  std::size_t bytes = 0, chunk_bytes = 0;
  for (int layer = 0; layer < layout.num_layers(); ++layer) {
    const auto [page_size, page_bytes] = layout.of(layer);
    const std::int64_t num_pages = CeilDiv(expected_tokens, page_size);
    const auto count = static_cast<std::size_t>(std::min(num_pages, layout.most_kept_pages(layer)));
    counts[page_bytes] += count;
    bytes += count * page_bytes;
  }
  for (const auto& [page_bytes, count] : counts) {
    chunk_bytes += CeilDiv(count, pool.chunk_bytes() / page_bytes) * pool.chunk_bytes();
  }
  const bool has_room = pool.CanAllocate(counts);
  // Idle sessions may make room; whether enough of them are idle is known when it is needed.
  const bool can_make_room = place.host_pool != nullptr && chunk_bytes <= pool.capacity_bytes() &&
                             place.host_pool->CanAllocate(counts);
  if (!has_room && !can_make_room) {
    return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
                         absl::StrCat("expected_tokens is ", expected_tokens, ", which takes ",
                                      bytes, " bytes of pages; ", pool.free_bytes(), " bytes of ",
                                      pool.capacity_bytes(), " are free"));
  }
  if (ledger_ == nullptr) return absl::OkStatus();
  return ledger_->Check(tenant, static_cast<std::int64_t>(bytes));
}

}  // namespace attention::server
