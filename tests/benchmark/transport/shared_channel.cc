#include "tests/benchmark/transport/shared_channel.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace attention::bench {
namespace {

constexpr std::size_t kRegionBytes = std::size_t{256} << 20;
constexpr std::size_t kAlignment = 64;
constexpr unsigned char kUnwritten = 0xff;  // NaN in every type

std::size_t Aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "shared memory: %s\n", why.c_str());
  std::exit(1);
}

}  // namespace

SharedChannel::SharedChannel(const std::string& path, bool copies) : copies_(copies) {
  auto connection = client::internal::SharedMemorySocket::Connect(path);
  if (!connection.ok()) Fail(connection.status().ToString());
  connection_ = *std::move(connection);
  const auto answer = connection_->Create("default", "", kRegionBytes);
  if (!answer.ok()) Fail(answer.status().ToString());
  region_id_ = answer->info.region_id();
  auto region = client::internal::SharedRegion::Map(answer->memory_fd, kRegionBytes, {});
  if (!region.ok()) Fail(region.status().ToString());
  region_ = *std::move(region);
}

std::shared_ptr<client::internal::SharedSlot> SharedChannel::Allocate(std::size_t bytes) const {
  auto slot = region_->Allocate(bytes);
  if (slot == nullptr) Fail("no room for " + std::to_string(bytes) + " bytes");
  return slot;
}

SharedTensors::SharedTensors(const SharedChannel& channel, std::size_t bytes_in,
                             std::size_t bytes_out)
    : channel_(channel), in_(channel.Allocate(bytes_in)), out_(channel.Allocate(bytes_out)) {
  std::memset(out_->data(), kUnwritten, bytes_out);
}

SharedTensors::~SharedTensors() {
  unsigned char first = 0;
  if (used_out_ > 0) std::memcpy(&first, out_->data() + used_out_ - 1, 1);
  if (is_sent_ && first == kUnwritten) Fail("the server has written no output");
}

void SharedTensors::Move(v1::Tensor* tensor) {
  if (tensor->data().empty()) return;
  std::memcpy(in_->data() + used_in_, tensor->data().data(), tensor->data().size());
  *tensor->mutable_shared_memory() = RefTo(in_->offset() + used_in_);
  used_in_ += Aligned(tensor->data().size());
  tensor->clear_data();
  if (channel_.copies()) source_.assign(in_->data(), used_in_);
}

v1::SharedMemoryRef SharedTensors::OutputPlace(std::size_t bytes) {
  const v1::SharedMemoryRef place = RefTo(out_->offset() + used_out_);
  used_out_ += Aligned(bytes);
  return place;
}

void SharedTensors::Prepare() {
  is_sent_ = true;
  if (channel_.copies()) std::memcpy(in_->data(), source_.data(), source_.size());
}

v1::SharedMemoryRef SharedTensors::RefTo(std::size_t offset) const {
  v1::SharedMemoryRef ref;
  ref.set_region_id(channel_.region_id());
  ref.set_offset(static_cast<std::int64_t>(offset));
  return ref;
}

}  // namespace attention::bench
