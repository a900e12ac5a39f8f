#include "server/cache/kv_cache_factory.h"

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr int kMaxLayers = 1024;

absl::Status CheckGeometry(const KvGeometry& geometry, int num_layers) {
  if (num_layers < 1 || num_layers > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.num_layers is ", num_layers, ", expected 1 to ", kMaxLayers));
  }
  // A cache serves any number of query heads; one for each KV head checks the rest.
  AttentionParams params;
  params.num_q_heads = params.num_kv_heads = geometry.num_kv_heads;
  params.head_dim_qk = geometry.head_dim_qk;
  params.head_dim_v = geometry.head_dim_v;
  if (geometry.num_kv_heads < 1 || geometry.num_kv_heads > kMaxHeads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "geometry.num_kv_heads is ", geometry.num_kv_heads, ", expected 1 to ", kMaxHeads));
  }
  absl::Status status = ValidateParams(params);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("geometry.", status.message()));
}

}  // namespace

absl::StatusOr<std::shared_ptr<KvCache>> KvCacheFactory::Create(
    const KvGeometry& geometry, int num_layers, std::int64_t expected_tokens) const {
  ATTENTION_RETURN_IF_ERROR(CheckGeometry(geometry, num_layers));
  ATTENTION_ASSIGN_OR_RETURN(
      const KvPageLayout layout,
      KvCache::ChooseLayout(backend_, geometry, page_size_, pool_.chunk_bytes()));
  ATTENTION_RETURN_IF_ERROR(CheckRoom(layout, num_layers, expected_tokens));
  return std::make_shared<KvCache>(pool_, geometry, layout, num_layers);
}

absl::Status KvCacheFactory::CheckRoom(const KvPageLayout& layout, int num_layers,
                                       std::int64_t expected_tokens) const {
  if (expected_tokens < 0 || expected_tokens > kMaxPosition) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected_tokens is ", expected_tokens, ", expected 0 to ", kMaxPosition));
  }
  const auto pages = static_cast<std::size_t>(CeilDiv(expected_tokens, layout.page_size)) *
                     static_cast<std::size_t>(num_layers);
  if (pool_.CanAllocate(layout.page_bytes, pages)) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
                       absl::StrCat("expected_tokens is ", expected_tokens, ", which takes ", pages,
                                    " pages of ", layout.page_bytes, " bytes; ", pool_.free_bytes(),
                                    " bytes of ", pool_.capacity_bytes(), " are free"));
}

}  // namespace attention::server
