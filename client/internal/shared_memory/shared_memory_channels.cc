#include "client/internal/shared_memory/shared_memory_channels.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/v1/server_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/call_context.h"
#include "client/internal/call/plain_call.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {
namespace {

constexpr absl::Duration kMinBackoff = absl::Seconds(1);
constexpr absl::Duration kMaxBackoff = absl::Seconds(60);
constexpr absl::Duration kInfoTimeout = absl::Seconds(2);

// How long a user's tensor is worth waiting for.
constexpr absl::Duration kUserTimeout = absl::Seconds(2);

// A server that refuses a region is asked for half of it, down to this.
constexpr std::size_t kMinRegionBytes = std::size_t{1} << 20;

// The answer of a target's server about itself.
absl::StatusOr<v1::GetServerInfoResponse> ParseInfo(const grpc::Status& status,
                                                    const grpc::ByteBuffer& answer) {
  if (!status.ok()) return FromGrpcStatus(status);
  return ReadAnswer<v1::GetServerInfoResponse>(
      answer, [](v1::GetServerInfoResponse& info, const codec::ReceivedMessage&) {
        return absl::StatusOr<v1::GetServerInfoResponse>(std::move(info));
      });
}

}  // namespace

SharedMemoryChannels::SharedMemoryChannels(std::shared_ptr<Transport> transport)
    : transport_(std::move(transport)),
      targets_(transport_->targets()),
      pool_(static_cast<std::size_t>(transport_->options().shared_memory.max_bytes)),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      max_region_bytes_(std::numeric_limits<std::size_t>::max()),
      channels_(targets_.size()),
      backoff_(kMinBackoff) {}

SharedMemoryChannels::~SharedMemoryChannels() {
  std::thread thread;
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
    thread = std::move(thread_);
    if (calling_ != nullptr) calling_->TryCancel();
    for (const Channel& channel : channels_) {
      if (channel.socket != nullptr) channel.socket->Interrupt();
    }
  }
  if (thread.joinable()) {
    eventfd_write(wake_fd_, 1);
    thread.join();
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

std::shared_ptr<SharedSlot> SharedMemoryChannels::Allocate(std::size_t target, std::size_t bytes) {
  std::shared_ptr<SharedSlot> slot = pool_.Allocate(target, bytes);
  if (slot == nullptr) AskForRoom(target, bytes);
  return slot;
}

std::shared_ptr<SharedSlot> SharedMemoryChannels::AllocateForUser(std::size_t bytes) {
  std::shared_ptr<SharedSlot> slot = pool_.AllocateAnywhere(bytes);
  const absl::Time deadline = absl::Now() + kUserTimeout;
  // A wish may come too late for the round that is under way.
  for (int i = 0; i < 2 && slot == nullptr && wake_fd_ >= 0; ++i) {
    absl::ReleasableMutexLock lock(&mutex_);
    if (!is_wanted_ && absl::Now() < retry_at_) break;
    const auto with_channel =
        std::find_if(channels_.begin(), channels_.end(),
                     [](const Channel& channel) { return channel.socket != nullptr; });
    const bool is_any = with_channel == channels_.end();
    RequestRound(is_any ? 0 : static_cast<std::size_t>(with_channel - channels_.begin()), bytes);
    const auto is_over = [this, before = num_rounds_]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return num_rounds_ > before; };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&is_over), deadline)) break;
    lock.Release();
    slot = pool_.AllocateAnywhere(bytes);
  }
  return slot;
}

std::optional<std::string> SharedMemoryChannels::RegionId(std::size_t target,
                                                          const SharedRegion& region) {
  if (region.target() != target || !region.is_usable()) return std::nullopt;
  return region.id();
}

void SharedMemoryChannels::OnRegionLost(std::size_t target, const std::string& region_id) {
  const std::vector<std::shared_ptr<SharedRegion>> regions = pool_.regions();
  const bool is_known = std::any_of(regions.begin(), regions.end(), [&](const auto& region) {
    return region->target() == target && region->id() == region_id;
  });
  if (!is_known) return;  // it is another channel already
  pool_.TakeAll(target);
  absl::MutexLock lock(&mutex_);
  channels_[target].is_lost = true;
  RequestRound(target, 0);
}

void SharedMemoryChannels::WaitUntilTried(absl::Time deadline) {
  if (wake_fd_ < 0) return;
  absl::MutexLock lock(&mutex_);
  if (num_rounds_ == 0) RequestRound(0, 0);
  const auto has_tried = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return num_rounds_ > 0; };
  mutex_.AwaitWithDeadline(absl::Condition(&has_tried), deadline);
}

SharedMemoryUsage SharedMemoryChannels::usage() const {
  SharedMemoryUsage usage;
  usage.num_channels = static_cast<int>(num_channels());
  usage.mapped_bytes = static_cast<std::int64_t>(pool_.mapped_bytes());
  for (const std::shared_ptr<SharedRegion>& region : pool_.regions()) {
    usage.used_bytes += static_cast<std::int64_t>(region->used_bytes());
  }
  usage.num_requests = num_requests_.load(std::memory_order_relaxed);
  return usage;
}

std::size_t SharedMemoryChannels::num_channels() const { return OpenTargets().size(); }

void SharedMemoryChannels::AskForRoom(std::size_t target, std::size_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (is_wanted_ && bytes <= channels_[target].wanted_bytes) return;
  if (!is_wanted_ && absl::Now() < retry_at_) return;
  RequestRound(target, bytes);
}

void SharedMemoryChannels::RequestRound(std::size_t target, std::size_t bytes) {
  if (wake_fd_ < 0 || is_stopping_) return;
  channels_[target].wanted_bytes = std::max(channels_[target].wanted_bytes, bytes);
  is_wanted_ = true;
  if (!thread_.joinable()) thread_ = std::thread([this] { Serve(); });
  eventfd_write(wake_fd_, 1);
}

void SharedMemoryChannels::Serve() {
  while (AwaitRound()) {
    const bool is_fulfilled = RunRound();
    absl::MutexLock lock(&mutex_);
    for (Channel& channel : channels_) channel.wanted_bytes = 0;
    is_wanted_ = false;
    ++num_rounds_;
    retry_at_ = is_fulfilled ? absl::InfinitePast() : absl::Now() + backoff_;
    backoff_ = is_fulfilled ? kMinBackoff : std::min(backoff_ * 2, kMaxBackoff);
  }
}

bool SharedMemoryChannels::AwaitRound() {
  for (;;) {
    const std::vector<std::size_t> open = OpenTargets();
    std::vector<pollfd> polled = {{wake_fd_, POLLIN, 0}};
    for (const std::size_t target : open) polled.push_back({SocketOf(target)->fd(), POLLIN, 0});
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    eventfd_t count = 0;
    eventfd_read(wake_fd_, &count);
    for (std::size_t i = 0; i < open.size(); ++i) {
      absl::ReleasableMutexLock lock(&mutex_);
      const bool is_lost = polled[i + 1].revents != 0 || channels_[open[i]].is_lost;
      lock.Release();
      if (is_lost) DropChannel(open[i]);
    }
    absl::MutexLock lock(&mutex_);
    if (is_stopping_) return false;
    if (is_wanted_) return true;
  }
}

void SharedMemoryChannels::DropChannel(std::size_t target) {
  // Slots that are held there stay mapped, with their lease.
  pool_.TakeAll(target);
  std::erase_if(retired_, [target](const auto& region) { return region->target() == target; });
  Channel dropped;  // let go of without the lock
  absl::MutexLock lock(&mutex_);
  std::swap(dropped, channels_[target]);
  channels_[target].wanted_bytes = dropped.wanted_bytes;
  max_region_bytes_ = std::numeric_limits<std::size_t>::max();
  // The next server there has most likely restarted.
  retry_at_ = absl::InfinitePast();
  backoff_ = kMinBackoff;
}

bool SharedMemoryChannels::RunRound() {
  OpenChannels();
  ReleaseRetired();
  bool has_room = true;
  for (const std::size_t target : OpenTargets()) {
    std::size_t bytes = 0;
    {
      absl::MutexLock lock(&mutex_);
      bytes = channels_[target].wanted_bytes;
    }
    if (bytes == 0 && pool_.Has(target)) continue;
    has_room = MakeRoom(target, bytes) && has_room;
  }
  return has_room && !OpenTargets().empty();
}

void SharedMemoryChannels::OpenChannels() {
  for (std::size_t target = 0; target < targets_.size(); ++target) {
    if (SocketOf(target) == nullptr) OpenChannel(target);
  }
}

void SharedMemoryChannels::OpenChannel(std::size_t target) {
  CallSettings settings;
  settings.identity = transport_->identity();
  settings.request_id = "shared-memory-channel";
  settings.deadline = absl::Now() + kInfoTimeout;
  CallContext context(settings);
  if (!context.status().ok()) return;
  {
    absl::MutexLock lock(&mutex_);
    if (is_stopping_) return;
    calling_ = context.grpc();
  }
  const grpc::Slice nothing;  // an empty GetServerInfoRequest
  grpc::ByteBuffer answer;
  const grpc::Status status = CallHere(targets_.EndpointOf(target), context.grpc(),
                                       ATTENTION_CLIENT_METHOD(ServerService, GetServerInfo),
                                       grpc::ByteBuffer(&nothing, 1), &answer);
  {
    absl::MutexLock lock(&mutex_);
    calling_ = nullptr;
  }
  const auto info = ParseInfo(status, answer);
  if (!info.ok() || info->shared_memory_socket().empty()) return;
  auto socket = SharedMemorySocket::Connect(info->shared_memory_socket());
  if (!socket.ok()) return;
  absl::MutexLock lock(&mutex_);
  if (is_stopping_) return;
  channels_[target].socket = *std::move(socket);
  channels_[target].server_epoch = info->server_epoch();
  channels_[target].tenant =
      info->tenant().empty() ? transport_->identity()->tenant().value_or("") : info->tenant();
}

bool SharedMemoryChannels::MakeRoom(std::size_t target, std::size_t bytes) {
  if (pool_.Allocate(target, bytes) != nullptr) return true;
  for (std::shared_ptr<SharedRegion>& region : pool_.TakeAbandoned(target)) {
    retired_.push_back(std::move(region));
  }
  ReleaseRetired();
  for (;;) {
    const absl::StatusOr<std::size_t> size = pool_.NextSize(bytes, max_region_bytes_);
    if (!size.ok()) return false;
    const absl::Status refusal = AddRegion(target, *size);
    if (refusal.ok()) return pool_.Allocate(target, bytes) != nullptr;
    const bool is_too_much = absl::IsResourceExhausted(refusal) || absl::IsInvalidArgument(refusal);
    if (!is_too_much || *size / 2 < std::max(bytes, kMinRegionBytes)) return false;
    max_region_bytes_ = *size / 2;
  }
}

absl::StatusOr<std::string> SharedMemoryChannels::TokenFor(const SharedMemorySocket& socket) const {
  TokenSource* token = transport_->identity()->token();
  if (token == nullptr || !socket.may_have_token()) return std::string();
  return token->Token();
}

absl::Status SharedMemoryChannels::AddRegion(std::size_t target, std::size_t bytes) {
  std::string tenant;
  std::shared_ptr<SharedMemorySocket> socket;
  {
    absl::MutexLock lock(&mutex_);
    socket = channels_[target].socket;
    tenant = channels_[target].tenant;
  }
  if (socket == nullptr) return absl::UnavailableError("the channel is gone");
  const absl::StatusOr<std::string> token = TokenFor(*socket);
  if (!token.ok()) return absl::PermissionDeniedError(token.status().message());
  absl::StatusOr<SharedMemorySocket::Region> answer = socket->Create(tenant, *token, bytes);
  absl::Status status = answer.status();
  if (answer.ok()) {
    absl::StatusOr<std::shared_ptr<SharedRegion>> region = SharedRegion::Map(
        answer->memory_fd, bytes, {target, answer->info.region_id(), socket}, pool_.counter());
    absl::MutexLock lock(&mutex_);
    if (answer->info.server_epoch() != channels_[target].server_epoch) {
      status = absl::UnavailableError("the socket is another server's, of the same name");
    } else if (region.ok()) {
      pool_.Add(*std::move(region));
    } else {
      status = region.status();
    }
  }
  // An answer that still comes would be taken for that to the next question.
  if (absl::IsUnavailable(status)) {
    Channel dropped;
    absl::MutexLock lock(&mutex_);
    std::swap(dropped, channels_[target]);
    pool_.TakeAll(target);
  }
  return status;
}

void SharedMemoryChannels::ReleaseRetired() {
  for (std::shared_ptr<SharedRegion>& region : std::exchange(retired_, {})) {
    if (!region->is_idle()) {
      retired_.push_back(std::move(region));
      continue;
    }
    const std::shared_ptr<SharedMemorySocket> socket = SocketOf(region->target());
    // A failure needs no care here: the next question finds it, and drops the channel.
    if (socket == region->lease().connection) (void)socket->Release(region->id());
  }
}

std::vector<std::size_t> SharedMemoryChannels::OpenTargets() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::size_t> open;
  for (std::size_t target = 0; target < channels_.size(); ++target) {
    if (channels_[target].socket != nullptr) open.push_back(target);
  }
  return open;
}

std::shared_ptr<SharedMemorySocket> SharedMemoryChannels::SocketOf(std::size_t target) const {
  absl::MutexLock lock(&mutex_);
  return channels_[target].socket;
}

}  // namespace attention::client::internal
