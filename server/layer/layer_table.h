// The layers of all tenants and of the server, and the memory of their weights.
//
// The server's layers are there from its start. Tenants use them, none can delete or replace one,
// and they count for no tenant.
//
// Weights are counted once however many layers of a tenant have them, for as long as anybody holds
// them: a deleted layer's until the last call that uses them is done. Tenants do not share, so that
// none can tell from its own bytes what another has; the operator's layers do, which are from
// files.
//
// Thread-safety: all methods. Layer is immutable.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/interrupt.h"
#include "server/base/mutex.h"
#include "server/domain/tenant_ledger.h"
#include "server/layer/layer_weights.h"

namespace attention::server {

struct Layer {
  std::string layer_id;
  std::string tenant;  // empty: the server's
  LayerSpec spec;
  std::vector<LayerTensor> tensors;  // that were uploaded
  std::string sha256;                // LayerTensors::Hash
  std::shared_ptr<const LayerWeights> weights;
  std::optional<Rotary> rotary;
  absl::Time create_time;
};

// INVALID_ARGUMENT unless it is a name that a layer may have; empty is one.
absl::Status CheckLayerId(const std::string& id);

// Bytes of all weights, those that are being uploaded included.
class LayerBytes {
 public:
  explicit LayerBytes(std::int64_t capacity) : capacity_(capacity) {}

  std::int64_t capacity() const { return capacity_; }
  std::int64_t used() const { return used_.load(std::memory_order_relaxed); }
  // False when there is no room.
  bool Take(std::int64_t bytes);
  void Give(std::int64_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }

 private:
  const std::int64_t capacity_;
  std::atomic<std::int64_t> used_{0};
};

class LayerTable {
 public:
  struct Limits {
    std::int64_t capacity_bytes = 0;
    std::int64_t max_layers_per_tenant = 0;
    std::string no_projections = {};                                     // of BackendInfo
    std::int64_t max_layers = std::numeric_limits<std::int64_t>::max();  // of all tenants
  };

  // `projections` may be null: no layer can be created then. References must outlive the table.
  LayerTable(ProjectionBackend* projections, const Limits& limits, const Clock& clock,
             TenantLimitsTable& tenants);

  const Limits& limits() const { return limits_; }

  // Room for a layer's weights while they are on their way; given back when it is destroyed.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(std::shared_ptr<LayerBytes> bytes, std::shared_ptr<TenantLedger> of_tenants,
                std::string tenant, std::int64_t size)
        : bytes_(std::move(bytes)),
          of_tenants_(std::move(of_tenants)),
          tenant_(std::move(tenant)),
          size_(size) {}
    Reservation(Reservation&& other) noexcept
        : bytes_(std::move(other.bytes_)),
          of_tenants_(std::move(other.of_tenants_)),
          tenant_(std::move(other.tenant_)),
          size_(std::exchange(other.size_, 0)) {}
    Reservation& operator=(Reservation&& other) noexcept {
      std::swap(bytes_, other.bytes_);
      std::swap(of_tenants_, other.of_tenants_);
      std::swap(tenant_, other.tenant_);
      std::swap(size_, other.size_);
      return *this;
    }
    ~Reservation() { Shrink(0); }

   private:
    friend class LayerTable;
    void Shrink(std::int64_t size) {
      if (bytes_ != nullptr) bytes_->Give(size_ - size);
      if (of_tenants_ != nullptr) of_tenants_->Give(tenant_, size_ - size);
      size_ = size;
    }

    std::shared_ptr<LayerBytes> bytes_;
    std::shared_ptr<TenantLedger> of_tenants_;  // null: the server's
    std::string tenant_;
    std::int64_t size_ = 0;
  };

  struct NewLayer {
    std::string tenant;                        // empty: the server's
    std::string layer_id;                      // empty: one is picked
    LayerSpec spec;                            // valid (ValidateLayerSpec)
    std::vector<std::string> visible_to = {};  // of the server's; empty: all tenants

    bool is_of_server() const { return tenant.empty(); }
  };
  // Checks what can be known before the weights are there. INVALID_ARGUMENT for the id;
  // RESOURCE_EXHAUSTED LAYER_BYTES_EXHAUSTED, QUOTA_EXCEEDED; PERMISSION_DENIED LAYER_READ_ONLY for
  // the name of a layer of the server's that the tenant can see; UNIMPLEMENTED.
  absl::StatusOr<Reservation> Reserve(const NewLayer& layer);

  // Packs the complete tensors and registers the layer; an equal one under the same id is returned
  // as it is. The spec is that of the tensors. ALREADY_EXISTS, and the errors of Reserve.
  absl::StatusOr<std::shared_ptr<const Layer>> Create(const NewLayer& layer,
                                                      const LayerTensors& tensors,
                                                      Reservation reservation);
  // Reserve, convert and create; the interrupt's error when that comes between.
  absl::StatusOr<std::shared_ptr<const Layer>> Convert(const std::string& tenant,
                                                       const std::string& source_id,
                                                       const std::string& layer_id,
                                                       int num_kv_heads,
                                                       const Interrupt& interrupt = nullptr);

  // The tenant's, or the server's that it can see. NOT_FOUND LAYER_NOT_FOUND, also for a layer
  // whose device failed and lost its memory.
  absl::StatusOr<std::shared_ptr<const Layer>> Find(const std::string& tenant,
                                                    const std::string& layer_id) const;
  // OK also when it is gone already. PERMISSION_DENIED LAYER_READ_ONLY for one of the server's.
  absl::Status Delete(const std::string& tenant, const std::string& layer_id);
  // The layers that Find gives the tenant, by ascending id, starting after `after_id`.
  std::vector<std::shared_ptr<const Layer>> List(const std::string& tenant,
                                                 const std::string& after_id,
                                                 std::size_t max_count) const;

  std::int64_t num_layers() const;
  std::int64_t weight_bytes() const { return bytes_->used(); }
  // The same of the tenant's own.
  std::int64_t num_layers(const std::string& tenant) const;
  std::int64_t weight_bytes(const std::string& tenant) const { return of_tenants_->HeldBy(tenant); }
  std::map<std::string, std::int64_t> weight_bytes_by_tenant() const {
    return of_tenants_->ByTenant();
  }

 private:
  using Key = std::pair<std::string, std::string>;  // tenant and id
  struct ServerLayer {
    std::shared_ptr<const Layer> layer;
    std::vector<std::string> visible_to;  // empty: all tenants

    bool IsVisibleTo(const std::string& tenant) const;
  };

  // Takes out the layers whose weights went with their device's memory, for the caller to let go
  // of: it frees them without the lock.
  std::vector<std::shared_ptr<const Layer>> TakeLost();
  void RemoveFromQuota(const std::string& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckQuota(const std::string& tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `key`: of the weights, among those who may share them.
  absl::StatusOr<std::shared_ptr<const LayerWeights>> WeightsOf(const LayerTensors& tensors,
                                                                const std::string& key,
                                                                Reservation reservation);
  absl::StatusOr<std::shared_ptr<const Layer>> Register(const NewLayer& new_layer,
                                                        std::shared_ptr<Layer> layer);
  absl::StatusOr<std::shared_ptr<const Layer>> RegisterForServer(const NewLayer& new_layer,
                                                                 std::shared_ptr<Layer> layer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The server's layer of the id that the tenant can see; null: there is none.
  std::shared_ptr<const Layer> ServersOf(const std::string& tenant,
                                         const std::string& layer_id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckIsTenants(const std::string& tenant, const std::string& layer_id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ProjectionBackend* const projections_;
  const Limits limits_;
  const Clock& clock_;
  // Shared: weights may outlive the table.
  const std::shared_ptr<LayerBytes> bytes_;
  const std::shared_ptr<TenantLedger> of_tenants_;

  mutable Mutex mutex_;
  std::map<Key, std::shared_ptr<const Layer>> layers_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<std::string, std::int64_t> layers_per_tenant_ ABSL_GUARDED_BY(mutex_);
  std::multimap<std::string, ServerLayer> servers_ ABSL_GUARDED_BY(mutex_);  // by id
  // The packed weights, by WeightsKey: by who may share them and by content.
  std::unordered_map<std::string, std::weak_ptr<const LayerWeights>> weights_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
