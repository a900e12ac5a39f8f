#include "server/cache/kv_cache_factory.h"

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

absl::Status CheckGeometry(const KvGeometry& geometry, int num_layers) {
  if (num_layers < 1 || num_layers > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.num_layers is ", num_layers, ", expected 1 to ", kMaxLayers));
  }
  if (geometry.num_kv_heads < 1 || geometry.num_kv_heads > kMaxHeads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "geometry.num_kv_heads is ", geometry.num_kv_heads, ", expected 1 to ", kMaxHeads));
  }
  absl::Status status = ValidateHeads(ParamsOf(geometry));
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("geometry.", status.message()));
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

absl::StatusOr<std::shared_ptr<KvCache>> KvCacheFactory::Create(const KvGeometry& geometry,
                                                                int num_layers,
                                                                std::int64_t expected_tokens,
                                                                const std::string& tenant) const {
  ATTENTION_RETURN_IF_ERROR(CheckGeometry(geometry, num_layers));
  ATTENTION_RETURN_IF_ERROR(CheckExpectedTokens(expected_tokens));
  ATTENTION_ASSIGN_OR_RETURN(const int device, ChoosePlace(ParamsOf(geometry), expected_tokens));
  const Place& place = places_[device];
  ATTENTION_ASSIGN_OR_RETURN(
      const KvPageLayout layout,
      KvCache::ChooseLayout(place.backend, geometry, page_size_, place.pool.chunk_bytes()));
  ATTENTION_RETURN_IF_ERROR(CheckRoom(place, layout, num_layers, expected_tokens, tenant));
  auto cache = std::make_shared<KvCache>(place.pool, device, geometry, layout, num_layers,
                                         CacheOwner{tenant, ledger_});
  if (place.caches != nullptr) place.caches->Add(cache);
  return cache;
}

std::shared_ptr<KvCache> KvCacheFactory::CreateLike(const KvCache& cache) const {
  const Place& place = places_[cache.device()];
  auto made = std::make_shared<KvCache>(place.pool, cache.device(), cache.geometry(),
                                        cache.layout(), cache.num_layers(), cache.owner());
  if (place.caches != nullptr) place.caches->Add(made);
  return made;
}

absl::StatusOr<int> KvCacheFactory::ChoosePlace(const AttentionParams& params,
                                                std::int64_t expected_tokens) const {
  absl::StatusOr<int> chosen = absl::InternalError("there is no device");
  for (std::size_t i = 0; i < places_.size(); ++i) {
    if (absl::Status status = places_[i].backend.Supports(params, expected_tokens); !status.ok()) {
      if (!chosen.ok()) chosen = std::move(status);
    } else if (!chosen.ok() || RoomOf(places_[i].pool) > RoomOf(places_[*chosen].pool)) {
      chosen = static_cast<int>(i);
    }
  }
  return chosen;
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

absl::Status KvCacheFactory::CheckRoom(const Place& place, const KvPageLayout& layout,
                                       int num_layers, std::int64_t expected_tokens,
                                       const std::string& tenant) const {
  const PagePool& pool = place.pool;
  const auto pages = static_cast<std::size_t>(CeilDiv(expected_tokens, layout.page_size)) *
                     static_cast<std::size_t>(num_layers);
  const bool has_room = pool.CanAllocate(layout.page_bytes, pages);
  // Idle sessions may make room; whether enough of them are idle is known when it is needed.
  const std::size_t chunks = CeilDiv(pages, pool.chunk_bytes() / layout.page_bytes);
  const bool can_make_room = place.host_pool != nullptr &&
                             chunks * pool.chunk_bytes() <= pool.capacity_bytes() &&
                             place.host_pool->CanAllocate(layout.page_bytes, pages);
  if (!has_room && !can_make_room) {
    return ReasonedError(
        absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
        absl::StrCat("expected_tokens is ", expected_tokens, ", which takes ", pages, " pages of ",
                     layout.page_bytes, " bytes; ", pool.free_bytes(), " bytes of ",
                     pool.capacity_bytes(), " are free"));
  }
  if (ledger_ == nullptr) return absl::OkStatus();
  return ledger_->Check(tenant, static_cast<std::int64_t>(pages * layout.page_bytes));
}

}  // namespace attention::server
