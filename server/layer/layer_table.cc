#include "server/layer/layer_table.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"
#include "server/base/random_id.h"
#include "server/base/status_macros.h"
#include "server/layer/convert.h"

namespace attention::server {
namespace {

constexpr std::size_t kMaxIdBytes = 128;

// The key that layers have in common when their packed weights are the same: their owner, dtype and
// shapes of all tensors, and the hash of their bytes. A tenant's name has no zero byte, the
// server's is empty.
std::string WeightsKey(const LayerTable::NewLayer& layer, const LayerTensors& tensors,
                       const std::string& hash) {
  std::string key =
      absl::StrCat(layer.tenant, absl::string_view("\0", 1), static_cast<int>(tensors.spec().dtype),
                   ":", tensors.spec().is_cross() ? "cross:" : "self:");
  for (int i = 0; i < kNumLayerTensors; ++i) {
    const auto tensor = static_cast<LayerTensor>(i);
    if (!tensors.has(tensor)) continue;
    const LayerTensorShape shape = ShapeOf(tensors.spec(), tensor);
    absl::StrAppend(&key, i, "[", shape.out_features, ",", shape.in_features, "]");
  }
  return key + hash;
}

}  // namespace

absl::Status CheckLayerId(const std::string& id) {
  const bool is_valid = id.size() <= kMaxIdBytes && std::all_of(id.begin(), id.end(), [](char c) {
                          return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
                                 c == '_' || c == '-' || c == '/';
                        });
  if (is_valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer_id is ", Quoted(id), ", expected at most ",
                                                 kMaxIdBytes, " of A-Z a-z 0-9 . _ - and /"));
}

bool LayerBytes::Take(std::int64_t bytes) {
  std::int64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (bytes > capacity_ - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

LayerTable::LayerTable(ProjectionBackend* projections, const Limits& limits, const Clock& clock,
                       TenantLimitsTable& tenants)
    : projections_(projections),
      limits_(limits),
      clock_(clock),
      bytes_(std::make_shared<LayerBytes>(limits.capacity_bytes)),
      of_tenants_(std::make_shared<TenantLedger>(TenantLimit::kLayerBytes,
                                                 &TenantLimits::layer_bytes, tenants)) {}

bool LayerTable::ServerLayer::IsVisibleTo(const std::string& tenant) const {
  return visible_to.empty() ||
         std::find(visible_to.begin(), visible_to.end(), tenant) != visible_to.end();
}

std::shared_ptr<const Layer> LayerTable::ServersOf(const std::string& tenant,
                                                   const std::string& layer_id) const {
  const auto [begin, end] = servers_.equal_range(layer_id);
  const auto found =
      std::find_if(begin, end, [&](const auto& entry) { return entry.second.IsVisibleTo(tenant); });
  return found == end ? nullptr : found->second.layer;
}

absl::Status LayerTable::CheckIsTenants(const std::string& tenant,
                                        const std::string& layer_id) const {
  if (ServersOf(tenant, layer_id) == nullptr) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kPermissionDenied, ErrorReason::kLayerReadOnly,
                       absl::StrCat("layer_id is ", Quoted(layer_id),
                                    ", a layer of the server's own, which tenants may only use, "
                                    "expected a layer of the tenant's or a new name"));
}

absl::Status LayerTable::CheckQuota(const std::string& tenant) const {
  if (static_cast<std::int64_t>(layers_.size()) >= limits_.max_layers) {
    return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
                         absl::StrCat("the server holds as many layers as max-layers allows (",
                                      limits_.max_layers, ")"));
  }
  const auto it = layers_per_tenant_.find(tenant);
  if (it == layers_per_tenant_.end() || it->second < limits_.max_layers_per_tenant) {
    return absl::OkStatus();
  }
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
                       absl::StrCat("the tenant holds ", it->second,
                                    " layers, expected fewer than max-layers-per-tenant (",
                                    limits_.max_layers_per_tenant, ")"));
}

std::vector<std::shared_ptr<const Layer>> LayerTable::TakeLost() {
  std::vector<std::shared_ptr<const Layer>> lost;
  MutexLock lock(&mutex_);
  for (auto it = layers_.begin(); it != layers_.end();) {
    if (!it->second->weights->is_lost()) {
      ++it;
      continue;
    }
    lost.push_back(std::move(it->second));
    RemoveFromQuota(it->first.first);
    it = layers_.erase(it);
  }
  std::erase_if(servers_, [&](auto& entry) {
    if (!entry.second.layer->weights->is_lost()) return false;
    lost.push_back(std::move(entry.second.layer));
    return true;
  });
  return lost;
}

void LayerTable::RemoveFromQuota(const std::string& tenant) {
  const auto count = layers_per_tenant_.find(tenant);
  if (--count->second == 0) layers_per_tenant_.erase(count);
}

absl::StatusOr<LayerTable::Reservation> LayerTable::Reserve(const NewLayer& layer) {
  if (projections_ == nullptr) {
    return absl::UnimplementedError(absl::StrCat("the server's backend has no projections",
                                                 limits_.no_projections.empty() ? "" : ": ",
                                                 limits_.no_projections));
  }
  ATTENTION_RETURN_IF_ERROR(CheckLayerId(layer.layer_id));
  const std::vector<std::shared_ptr<const Layer>> lost = TakeLost();
  if (!layer.is_of_server()) {
    MutexLock lock(&mutex_);
    ATTENTION_RETURN_IF_ERROR(CheckIsTenants(layer.tenant, layer.layer_id));
    if (layers_.count({layer.tenant, layer.layer_id}) == 0) {
      ATTENTION_RETURN_IF_ERROR(CheckQuota(layer.tenant));
    }
  }
  const auto bytes =
      static_cast<std::int64_t>(LayerWeights::PackedBytes(*projections_, layer.spec));
  Reservation of_tenant;
  if (!layer.is_of_server()) {
    std::string tenant = layer.tenant;  // before anything is taken: it may throw
    ATTENTION_RETURN_IF_ERROR(of_tenants_->Take(tenant, bytes));
    of_tenant = Reservation(nullptr, of_tenants_, std::move(tenant), bytes);
  }
  if (bytes_->Take(bytes)) {
    of_tenant.bytes_ = bytes_;
    of_tenant.size_ = bytes;
    return of_tenant;
  }
  return ReasonedError(
      absl::StatusCode::kResourceExhausted, ErrorReason::kLayerBytesExhausted,
      absl::StrCat("the layer's weights take ", bytes, " bytes, expected at most the ",
                   bytes_->capacity() - bytes_->used(), " that are left of layer-capacity-bytes (",
                   bytes_->capacity(), ")"));
}

absl::StatusOr<std::shared_ptr<const LayerWeights>> LayerTable::WeightsOf(
    const LayerTensors& tensors, const std::string& key, Reservation reservation) {
  {
    MutexLock lock(&mutex_);
    const auto it = weights_.find(key);
    const auto known = it == weights_.end() ? nullptr : it->second.lock();
    if (known != nullptr && !known->is_lost()) return known;
  }
  ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<const LayerWeights> packed,
                             LayerWeights::Pack(*projections_, tensors));
  // The packed weights count by their own size from now on, until nobody holds them.
  reservation.Shrink(static_cast<std::int64_t>(packed->bytes()));
  auto counted = std::make_shared<std::pair<Reservation, std::shared_ptr<const LayerWeights>>>(
      std::move(reservation), std::move(packed));
  std::shared_ptr<const LayerWeights> weights(counted, counted->second.get());
  MutexLock lock(&mutex_);
  std::weak_ptr<const LayerWeights>& known = weights_[key];
  if (auto first = known.lock(); first != nullptr && !first->is_lost()) {
    return first;  // another upload was faster
  }
  known = weights;
  return weights;
}

absl::StatusOr<std::shared_ptr<const Layer>> LayerTable::Create(const NewLayer& new_layer,
                                                                const LayerTensors& tensors,
                                                                Reservation reservation) {
  ATTENTION_RETURN_IF_ERROR(tensors.CheckComplete());
  auto layer = std::make_shared<Layer>();
  layer->tenant = new_layer.tenant;
  layer->layer_id = new_layer.layer_id.empty() ? MakeRandomId() : new_layer.layer_id;
  layer->spec = tensors.spec();
  layer->sha256 = tensors.Hash();
  for (int i = 0; i < kNumLayerTensors; ++i) {
    const auto tensor = static_cast<LayerTensor>(i);
    if (tensors.has(tensor)) layer->tensors.push_back(tensor);
  }
  ATTENTION_ASSIGN_OR_RETURN(
      layer->weights,
      WeightsOf(tensors, WeightsKey(new_layer, tensors, layer->sha256), std::move(reservation)));
  if (layer->spec.rotary) layer->rotary.emplace(*layer->spec.rotary);
  layer->create_time = clock_.Now();
  return Register(new_layer, std::move(layer));
}

absl::StatusOr<std::shared_ptr<const Layer>> LayerTable::RegisterForServer(
    const NewLayer& new_layer, std::shared_ptr<Layer> layer) {
  const auto [begin, end] = servers_.equal_range(layer->layer_id);
  const auto is_seen_by_both = [&](const auto& entry) {
    const ServerLayer& other = entry.second;
    return other.visible_to.empty() || new_layer.visible_to.empty() ||
           std::any_of(new_layer.visible_to.begin(), new_layer.visible_to.end(),
                       [&](const std::string& tenant) { return other.IsVisibleTo(tenant); });
  };
  if (std::any_of(begin, end, is_seen_by_both)) {
    return absl::AlreadyExistsError(
        absl::StrCat("layer_id is ", Quoted(layer->layer_id),
                     ", which is another layer's that the same tenants see"));
  }
  servers_.emplace(layer->layer_id, ServerLayer{layer, new_layer.visible_to});
  return std::shared_ptr<const Layer>(std::move(layer));
}

absl::StatusOr<std::shared_ptr<const Layer>> LayerTable::Register(const NewLayer& new_layer,
                                                                  std::shared_ptr<Layer> layer) {
  std::shared_ptr<const Layer> lost;  // since the reservation; freed without the lock
  MutexLock lock(&mutex_);
  if (new_layer.is_of_server()) return RegisterForServer(new_layer, std::move(layer));
  const Key key(layer->tenant, layer->layer_id);
  if (const auto it = layers_.find(key); it != layers_.end() && it->second->weights->is_lost()) {
    lost = std::move(it->second);
    RemoveFromQuota(layer->tenant);
    layers_.erase(it);
  }
  if (const auto it = layers_.find(key); it != layers_.end()) {
    const Layer& present = *it->second;
    if (present.spec == layer->spec && present.sha256 == layer->sha256 &&
        present.tensors == layer->tensors) {
      return it->second;
    }
    return absl::AlreadyExistsError(absl::StrCat("layer_id is ", Quoted(layer->layer_id),
                                                 ", which is another layer's, expected a new one"));
  }
  ATTENTION_RETURN_IF_ERROR(CheckQuota(layer->tenant));
  ++layers_per_tenant_[layer->tenant];
  layers_[key] = layer;
  return std::shared_ptr<const Layer>(std::move(layer));
}

absl::StatusOr<std::shared_ptr<const Layer>> LayerTable::Convert(const std::string& tenant,
                                                                 const std::string& source_id,
                                                                 const std::string& layer_id,
                                                                 int num_kv_heads,
                                                                 const Interrupt& interrupt) {
  ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<const Layer> source, Find(tenant, source_id));
  ATTENTION_ASSIGN_OR_RETURN(const LayerSpec spec, PooledSpec(source->spec, num_kv_heads));
  const NewLayer layer{tenant, layer_id, spec};
  ATTENTION_ASSIGN_OR_RETURN(Reservation reservation, Reserve(layer));
  ATTENTION_ASSIGN_OR_RETURN(const LayerTensors tensors, source->weights->Unpack(source->spec));
  ATTENTION_ASSIGN_OR_RETURN(const LayerTensors converted,
                             MeanPoolHeads(tensors, num_kv_heads, interrupt));
  ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
  return Create(layer, converted, std::move(reservation));
}

absl::StatusOr<std::shared_ptr<const Layer>> LayerTable::Find(const std::string& tenant,
                                                              const std::string& layer_id) const {
  MutexLock lock(&mutex_);
  const auto it = layers_.find({tenant, layer_id});
  const std::shared_ptr<const Layer> found =
      it != layers_.end() ? it->second : ServersOf(tenant, layer_id);
  if (found != nullptr && !found->weights->is_lost()) return found;
  if (found != nullptr) {
    return ReasonedError(absl::StatusCode::kNotFound, ErrorReason::kLayerNotFound,
                         absl::StrCat("layer_id is ", Quoted(layer_id),
                                      ", which was lost: its device failed and lost its memory; "
                                      "it can be created again"));
  }
  return ReasonedError(
      absl::StatusCode::kNotFound, ErrorReason::kLayerNotFound,
      absl::StrCat("layer_id is ", Quoted(layer_id), ", expected that of a layer of the tenant"));
}

absl::Status LayerTable::Delete(const std::string& tenant, const std::string& layer_id) {
  std::shared_ptr<const Layer> removed;  // may be the last holder: freed without the lock
  MutexLock lock(&mutex_);
  const auto it = layers_.find({tenant, layer_id});
  if (it == layers_.end()) return CheckIsTenants(tenant, layer_id);
  removed = std::move(it->second);
  layers_.erase(it);
  RemoveFromQuota(tenant);
  std::erase_if(weights_, [](const auto& entry) { return entry.second.expired(); });
  return absl::OkStatus();
}

std::vector<std::shared_ptr<const Layer>> LayerTable::List(const std::string& tenant,
                                                           const std::string& after_id,
                                                           std::size_t max_count) const {
  MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const Layer>> layers;
  auto own = layers_.upper_bound({tenant, after_id});
  auto servers = servers_.upper_bound(after_id);
  while (layers.size() < max_count) {
    const bool has_own = own != layers_.end() && own->first.first == tenant;
    const bool has_servers = servers != servers_.end();
    if (!has_own && !has_servers) break;
    std::shared_ptr<const Layer> next;
    if (has_own && (!has_servers || own->first.second <= servers->first)) {
      next = (own++)->second;
    } else {
      const ServerLayer& found = (servers++)->second;
      if (found.IsVisibleTo(tenant)) next = found.layer;
    }
    if (next != nullptr && !next->weights->is_lost()) layers.push_back(std::move(next));
  }
  return layers;
}

std::int64_t LayerTable::num_layers(const std::string& tenant) const {
  MutexLock lock(&mutex_);
  const auto it = layers_per_tenant_.find(tenant);
  return it == layers_per_tenant_.end() ? 0 : it->second;
}

std::int64_t LayerTable::num_layers() const {
  MutexLock lock(&mutex_);
  return static_cast<std::int64_t>(layers_.size() + servers_.size());
}

}  // namespace attention::server
