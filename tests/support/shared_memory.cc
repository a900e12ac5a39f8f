#include "tests/support/shared_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "kernels/base/check.h"
#include "proto/transport/packet.h"

namespace attention::testing {

SharedMemory::SharedMemory(int fd, std::size_t bytes, std::string region_id)
    : fd_(fd), size_(bytes), region_id_(std::move(region_id)) {
  data_ = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
  ATTENTION_CHECK(data_ != MAP_FAILED);
}

SharedMemory::~SharedMemory() {
  munmap(data_, size_);
  close(fd_);
}

ChannelConnection::ChannelConnection(const std::string& path)
    : fd_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ATTENTION_CHECK(path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path.data(), path.size());
  EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0)
      << path << ": " << std::strerror(errno);
}

ChannelConnection::~ChannelConnection() {
  close(fd_);
  if (received_fd_ >= 0) close(received_fd_);
}

v1::SharedMemoryResponse ChannelConnection::Call(const std::string& packet,
                                                 const std::vector<int>& fds) {
  Send(packet, fds);
  return Receive();
}

void ChannelConnection::Send(const std::string& packet, const std::vector<int>& fds) {
  std::string bytes = packet;
  iovec buffer{bytes.data(), bytes.size()};
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  EXPECT_GE(sendmsg(fd_, &message, MSG_NOSIGNAL), 0) << std::strerror(errno);
}

v1::SharedMemoryResponse ChannelConnection::Receive() {
  char answer[4096];
  if (received_fd_ >= 0) close(std::exchange(received_fd_, -1));
  const ssize_t size = transport::ReceivePacket(fd_, answer, &received_fd_, 0);
  v1::SharedMemoryResponse response;
  EXPECT_TRUE(size <= 0 || response.ParseFromArray(answer, static_cast<int>(size)));
  return response;
}

int ChannelConnection::TakeFd() { return std::exchange(received_fd_, -1); }

v1::SharedMemoryResponse ChannelConnection::Create(std::size_t bytes, const std::string& tenant) {
  v1::SharedMemoryRequest request;
  request.mutable_create()->set_tenant(tenant);
  request.mutable_create()->set_size_bytes(static_cast<std::int64_t>(bytes));
  return Call(request.SerializeAsString());
}

std::unique_ptr<SharedMemory> ChannelConnection::MustCreate(std::size_t bytes,
                                                            const std::string& tenant) {
  const v1::SharedMemoryResponse response = Create(bytes, tenant);
  EXPECT_TRUE(response.has_create()) << response.ShortDebugString();
  const int fd = TakeFd();
  ATTENTION_CHECK(fd >= 0);
  return std::make_unique<SharedMemory>(fd, bytes, response.create().region_id());
}

v1::SharedMemoryResponse ChannelConnection::Release(const std::string& region_id) {
  v1::SharedMemoryRequest request;
  request.mutable_release()->set_region_id(region_id);
  return Call(request.SerializeAsString());
}

void MoveToSharedMemory(const SharedMemory& memory, std::size_t offset, v1::Tensor* tensor) {
  ATTENTION_CHECK(offset + tensor->data().size() <= memory.size());
  std::memcpy(memory.data() + offset, tensor->data().data(), tensor->data().size());
  tensor->clear_data();
  tensor->mutable_shared_memory()->set_region_id(memory.region_id());
  tensor->mutable_shared_memory()->set_offset(static_cast<std::int64_t>(offset));
}

}  // namespace attention::testing
