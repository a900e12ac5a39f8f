// A server's shared-memory channel whose answers the test may change, and the memory it has made.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/shared_memory.pb.h"
#include "attention/v1/tensor.pb.h"
#include "proto/transport/packet.h"

namespace attention::client {

class FakeSharedMemoryChannel {
 public:
  using Handler = std::function<void(const v1::SharedMemoryRequest&, std::int64_t size,
                                     v1::SharedMemoryResponse*)>;

  static constexpr std::uint64_t kEpoch = 77;

  explicit FakeSharedMemoryChannel(const std::string& name, Handler handler = nullptr)
      : path_(absl::StrCat(testing::TempDir(), "fake-channel-", name, "-", getpid())),
        handler_(std::move(handler)) {
    unlink(path_.c_str());
    listen_fd_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    EXPECT_EQ(bind(listen_fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listen_fd_, 8), 0);
    EXPECT_EQ(pipe(stop_), 0);
    thread_ = std::thread([this] { Serve(); });
  }
  ~FakeSharedMemoryChannel() {
    EXPECT_EQ(write(stop_[1], "", 1), 1);
    thread_.join();
    for (const auto& [id, memory] : memories_) munmap(memory.data, memory.size);
    for (const int fd : {listen_fd_, stop_[0], stop_[1]}) close(fd);
    unlink(path_.c_str());
  }

  const std::string& path() const { return path_; }
  // Regions that were made so far.
  std::size_t num_regions() const {
    absl::MutexLock lock(&mutex_);
    return memories_.size();
  }
  std::vector<std::string> released() const {
    absl::MutexLock lock(&mutex_);
    return released_;
  }

  // The bytes that the reference names; null when it is not in a region of this channel.
  char* At(const v1::SharedMemoryRef& ref, std::size_t bytes) const {
    absl::MutexLock lock(&mutex_);
    const auto found = memories_.find(ref.region_id());
    if (found == memories_.end()) return nullptr;
    const auto offset = static_cast<std::size_t>(ref.offset());
    if (offset + bytes > found->second.size) return nullptr;
    return found->second.data + offset;
  }

  // Ends all connections.
  void Hang() { hang_ = true; }

 private:
  struct Memory {
    char* data;
    std::size_t size;
  };

  void Serve() {
    std::vector<int> connections;
    for (;;) {
      std::vector<pollfd> polled = {{stop_[0], POLLIN, 0}, {listen_fd_, POLLIN, 0}};
      for (const int fd : connections) polled.push_back({fd, POLLIN, 0});
      poll(polled.data(), polled.size(), 10);
      if (polled[0].revents != 0) break;
      if (hang_.exchange(false)) {
        for (const int fd : connections) close(fd);
        connections.clear();
        continue;
      }
      std::vector<int> open;
      for (std::size_t i = 0; i < connections.size(); ++i) {
        const bool ended = polled[i + 2].revents != 0 && !Answer(connections[i]);
        if (ended) close(connections[i]);
        if (!ended) open.push_back(connections[i]);
      }
      connections = open;
      if (polled[1].revents != 0) connections.push_back(accept(listen_fd_, nullptr, nullptr));
    }
    for (const int fd : connections) close(fd);
  }

  bool Answer(int connection) {
    char bytes[4096];
    const ssize_t size = recv(connection, bytes, sizeof(bytes), 0);
    v1::SharedMemoryRequest request;
    if (size <= 0 || !request.ParseFromArray(bytes, static_cast<int>(size))) return false;
    v1::SharedMemoryResponse response;
    int fd = -1;
    if (request.has_create()) {
      fd = Create(request, &response);
    } else {
      absl::MutexLock lock(&mutex_);
      released_.push_back(request.release().region_id());
      response.mutable_release();
    }
    const bool is_sent = transport::SendPacket(connection, response.SerializeAsString(), fd, 0) > 0;
    if (fd >= 0) close(fd);
    return is_sent;
  }

  // The memory's descriptor; negative when the test refuses it.
  int Create(const v1::SharedMemoryRequest& request, v1::SharedMemoryResponse* response) {
    const auto size = static_cast<std::size_t>(request.create().size_bytes());
    response->mutable_create()->set_server_epoch(kEpoch);
    response->mutable_create()->set_size_bytes(request.create().size_bytes());
    if (handler_) handler_(request, request.create().size_bytes(), response);
    if (!response->has_create()) return -1;
    const int fd = memfd_create("fake-channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT_NE(data, MAP_FAILED);
    absl::MutexLock lock(&mutex_);
    const std::string id = absl::StrCat("region-", memories_.size());
    memories_[id] = {static_cast<char*>(data), size};
    response->mutable_create()->set_region_id(id);
    return fd;
  }

  const std::string path_;
  const Handler handler_;
  int listen_fd_ = -1;
  int stop_[2] = {-1, -1};
  std::atomic<bool> hang_ = false;
  mutable absl::Mutex mutex_;
  std::map<std::string, Memory> memories_;
  std::vector<std::string> released_;
  std::thread thread_;
};

}  // namespace attention::client
