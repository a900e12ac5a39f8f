#include "client/internal/shared_lanes.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/v1/server_service.pb.h"
#include "client/internal/blocking_call.h"
#include "client/internal/call_context.h"
#include "client/internal/status_macros.h"
#include "client/internal/transport.h"

namespace attention::client::internal {
namespace {

constexpr absl::Duration kMinBackoff = absl::Seconds(1);
constexpr absl::Duration kMaxBackoff = absl::Seconds(60);
constexpr absl::Duration kInfoTimeout = absl::Seconds(2);

// A server that refuses a region is asked for half of it, down to this.
constexpr size_t kMinRegionBytes = size_t{1} << 20;

// What a target's server says of itself.
absl::StatusOr<v1::GetServerInfoResponse> ParseInfo(const grpc::Status& status,
                                                    const grpc::ByteBuffer& answer) {
  if (!status.ok()) return FromGrpcStatus(status);
  return ReadAnswer<v1::GetServerInfoResponse>(
      answer, [](v1::GetServerInfoResponse& info, const codec::ReceivedMessage&) {
        return absl::StatusOr<v1::GetServerInfoResponse>(std::move(info));
      });
}

}  // namespace

SharedLanes::SharedLanes(const ClientOptions& options, Targets& targets)
    : tenant_(options.tenant),
      targets_(targets),
      pool_(static_cast<size_t>(options.shared_memory.max_bytes)),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      max_region_bytes_(std::numeric_limits<size_t>::max()),
      lanes_(targets.size()),
      backoff_(kMinBackoff) {}

SharedLanes::~SharedLanes() {
  std::thread thread;
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
    thread = std::move(thread_);
    if (calling_ != nullptr) calling_->TryCancel();
    for (const Lane& lane : lanes_) {
      if (lane.connection != nullptr) lane.connection->Interrupt();
    }
  }
  if (thread.joinable()) {
    eventfd_write(wake_fd_, 1);
    thread.join();
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

std::shared_ptr<SharedSlot> SharedLanes::Allocate(size_t bytes) {
  std::shared_ptr<SharedSlot> slot = pool_.Allocate(bytes);
  if (slot == nullptr) Want(bytes);
  return slot;
}

absl::StatusOr<std::shared_ptr<SharedSlot>> SharedLanes::AllocateForUser(size_t bytes) {
  std::shared_ptr<SharedSlot> slot = pool_.AllocateAnywhere(bytes);
  if (slot == nullptr) {
    ATTN_RETURN_IF_ERROR(pool_.Grow(bytes));
    slot = pool_.AllocateAnywhere(bytes);
  }
  // Only if others were faster.
  if (slot == nullptr) return absl::ResourceExhaustedError("shared memory is full");
  if (!slot->region()->is_offered()) Want(0);
  return slot;
}

std::optional<std::string> SharedLanes::RegionId(size_t target, const SharedRegion& region) const {
  absl::MutexLock lock(&mutex_);
  const RegionIds& ids = lanes_[target].ids;
  const auto found = ids.find(&region);
  if (found == ids.end()) return std::nullopt;
  return found->second.id;
}

void SharedLanes::OnRegionLost(size_t target, const std::string& region_id) {
  absl::MutexLock lock(&mutex_);
  Lane& lane = lanes_[target];
  const bool is_known = std::any_of(lane.ids.begin(), lane.ids.end(), [&](const auto& entry) {
    return entry.second.id == region_id;
  });
  if (!is_known) return;  // it is another lane already
  lane.is_lost = true;
  lane.ids.clear();
  UpdateOffered();
  Wake(0);
}

void SharedLanes::WaitUntilTried(absl::Time deadline) {
  if (wake_fd_ < 0) return;
  absl::MutexLock lock(&mutex_);
  if (!has_tried_) Wake(0);
  mutex_.AwaitWithDeadline(absl::Condition(&has_tried_), deadline);
}

SharedMemoryUsage SharedLanes::usage() const {
  SharedMemoryUsage usage;
  usage.num_lanes = static_cast<int>(num_lanes());
  usage.mapped_bytes = static_cast<int64_t>(pool_.mapped_bytes());
  for (const std::shared_ptr<SharedRegion>& region : pool_.regions()) {
    usage.used_bytes += static_cast<int64_t>(region->used_bytes());
  }
  usage.num_requests = num_requests_.load(std::memory_order_relaxed);
  return usage;
}

size_t SharedLanes::num_lanes() const { return OpenTargets().size(); }

void SharedLanes::Want(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (is_wanted_ && bytes <= wanted_bytes_) return;
  if (!is_wanted_ && absl::Now() < retry_at_) return;
  Wake(bytes);
}

void SharedLanes::Wake(size_t bytes) {
  if (wake_fd_ < 0 || is_stopping_) return;
  wanted_bytes_ = std::max(wanted_bytes_, bytes);
  is_wanted_ = true;
  if (!thread_.joinable()) thread_ = std::thread([this] { Serve(); });
  eventfd_write(wake_fd_, 1);
}

void SharedLanes::UpdateOffered() {
  for (const std::shared_ptr<SharedRegion>& region : pool_.regions()) {
    region->set_is_offered(std::any_of(lanes_.begin(), lanes_.end(), [&](const Lane& lane) {
      return lane.ids.contains(region.get());
    }));
  }
}

void SharedLanes::Serve() {
  while (AwaitWork()) {
    size_t bytes = 0;
    {
      absl::MutexLock lock(&mutex_);
      bytes = wanted_bytes_;
    }
    const bool is_fulfilled = Work(bytes);
    absl::MutexLock lock(&mutex_);
    wanted_bytes_ = 0;
    is_wanted_ = false;
    has_tried_ = true;
    retry_at_ = is_fulfilled ? absl::InfinitePast() : absl::Now() + backoff_;
    backoff_ = is_fulfilled ? kMinBackoff : std::min(backoff_ * 2, kMaxBackoff);
  }
}

bool SharedLanes::AwaitWork() {
  for (;;) {
    const std::vector<size_t> open = OpenTargets();
    std::vector<pollfd> polled = {{wake_fd_, POLLIN, 0}};
    for (const size_t target : open) polled.push_back({ConnectionOf(target)->fd(), POLLIN, 0});
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    eventfd_t count = 0;
    eventfd_read(wake_fd_, &count);
    for (size_t i = 0; i < open.size(); ++i) {
      absl::ReleasableMutexLock lock(&mutex_);
      const bool is_lost = polled[i + 1].revents != 0 || lanes_[open[i]].is_lost;
      lock.Release();
      if (is_lost) DropLane(open[i]);
    }
    absl::MutexLock lock(&mutex_);
    if (is_stopping_) return false;
    if (is_wanted_) return true;
  }
}

void SharedLanes::DropLane(size_t target) {
  Lane dropped;  // let go of without the lock
  absl::MutexLock lock(&mutex_);
  std::swap(dropped, lanes_[target]);
  UpdateOffered();
  max_region_bytes_ = std::numeric_limits<size_t>::max();
  // What comes next is most likely a server that has restarted.
  retry_at_ = absl::InfinitePast();
  backoff_ = kMinBackoff;
}

bool SharedLanes::Work(size_t bytes) {
  OpenLanes();
  if (OpenTargets().empty()) return false;
  const bool has_room = MakeRoom(bytes);
  ReleaseRetired();
  return has_room;
}

void SharedLanes::OpenLanes() {
  for (size_t target = 0; target < targets_.size(); ++target) {
    if (ConnectionOf(target) == nullptr) OpenLane(target);
  }
}

void SharedLanes::OpenLane(size_t target) {
  CallSettings settings;
  settings.tenant = tenant_;
  settings.request_id = "shared-memory-lane";
  settings.deadline = absl::Now() + kInfoTimeout;
  CallContext context(settings);
  {
    absl::MutexLock lock(&mutex_);
    if (is_stopping_) return;
    calling_ = context.grpc();
  }
  const grpc::Slice nothing;  // an empty GetServerInfoRequest
  grpc::ByteBuffer answer;
  const grpc::Status status =
      CallHere(targets_.EndpointOf(target), context.grpc(),
               ATTN_METHOD(ServerService, GetServerInfo), grpc::ByteBuffer(&nothing, 1), &answer);
  {
    absl::MutexLock lock(&mutex_);
    calling_ = nullptr;
  }
  const auto info = ParseInfo(status, answer);
  if (!info.ok() || info->shared_memory_socket().empty()) return;
  auto connection = LaneConnection::Connect(info->shared_memory_socket());
  if (!connection.ok()) return;
  absl::MutexLock lock(&mutex_);
  if (is_stopping_) return;
  lanes_[target].connection = *std::move(connection);
  lanes_[target].worker_epoch = info->worker_epoch();
}

bool SharedLanes::MakeRoom(size_t bytes) {
  (void)OfferRegions();  // one that is refused need not be in the way
  if (pool_.Allocate(bytes) != nullptr) return true;
  pool_.Retire();
  for (;;) {
    if (pool_.AllocateAnywhere(bytes) == nullptr && !pool_.Grow(bytes, max_region_bytes_).ok()) {
      return false;
    }
    const absl::Status refusal = OfferRegions();
    if (pool_.Allocate(bytes) != nullptr) return true;
    if (refusal.ok()) return false;
    const std::shared_ptr<SharedRegion> refused = pool_.regions().back();
    pool_.DropUnoffered();
    if (absl::IsUnavailable(refusal) || refused->size() / 2 < std::max(bytes, kMinRegionBytes)) {
      return false;
    }
    max_region_bytes_ = refused->size() / 2;
  }
}

absl::Status SharedLanes::OfferRegions() {
  absl::Status refusal;
  for (const std::shared_ptr<SharedRegion>& region : pool_.regions()) {
    for (const size_t target : OpenTargets()) {
      if (!RegionId(target, *region).has_value()) refusal.Update(Offer(target, region));
    }
  }
  return refusal;
}

absl::Status SharedLanes::Offer(size_t target, const std::shared_ptr<SharedRegion>& region) {
  const std::shared_ptr<LaneConnection> connection = ConnectionOf(target);
  absl::StatusOr<v1::RegisterRegionResponse> answer = connection->Register(tenant_, region->fd());
  absl::ReleasableMutexLock lock(&mutex_);
  Lane& lane = lanes_[target];
  if (answer.ok() && answer->worker_epoch() == lane.worker_epoch) {
    lane.ids[region.get()] = {region, answer->region_id()};
    region->set_is_offered(true);
    return absl::OkStatus();
  }
  lock.Release();
  if (answer.ok()) {
    answer = absl::UnavailableError("the socket is another server's, of the same name");
  }
  // After an answer that is late, the next would be taken for another's.
  if (absl::IsUnavailable(answer.status())) {
    Lane dropped;
    absl::MutexLock relock(&mutex_);
    std::swap(dropped, lanes_[target]);
    UpdateOffered();
  }
  return answer.status();
}

void SharedLanes::ReleaseRetired() {
  const std::vector<std::shared_ptr<SharedRegion>> current = pool_.regions();
  for (const size_t target : OpenTargets()) {
    std::vector<KnownRegion> retired;
    {
      absl::MutexLock lock(&mutex_);
      RegionIds& ids = lanes_[target].ids;
      for (auto entry = ids.begin(); entry != ids.end();) {
        const auto at = entry++;
        if (std::count(current.begin(), current.end(), at->second.region) > 0) continue;
        retired.push_back(std::move(at->second));
        ids.erase(at);
      }
    }
    const std::shared_ptr<LaneConnection> connection = ConnectionOf(target);
    // A lane that does not answer is dropped when it next should.
    for (const KnownRegion& region : retired) (void)connection->Release(region.id);
  }
}

std::vector<size_t> SharedLanes::OpenTargets() const {
  absl::MutexLock lock(&mutex_);
  std::vector<size_t> open;
  for (size_t target = 0; target < lanes_.size(); ++target) {
    if (lanes_[target].connection != nullptr) open.push_back(target);
  }
  return open;
}

std::shared_ptr<LaneConnection> SharedLanes::ConnectionOf(size_t target) const {
  absl::MutexLock lock(&mutex_);
  return lanes_[target].connection;
}

}  // namespace attention::client::internal
