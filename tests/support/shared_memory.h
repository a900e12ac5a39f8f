// A client of the shared-memory channel, by hand: what a user without the SDK would write.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "attention/v1/shared_memory.pb.h"
#include "attention/v1/tensor.pb.h"

namespace attention::testing {

// A client's end of a region: the server's memory, mapped here.
class SharedMemory {
 public:
  // Takes the descriptor.
  SharedMemory(int fd, std::size_t bytes, std::string region_id);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int fd() const { return fd_; }
  char* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& region_id() const { return region_id_; }

 private:
  const int fd_;
  const std::size_t size_;
  const std::string region_id_;
  char* data_;
};

// A connection to the channel's socket. Fails the test when it cannot connect.
class ChannelConnection {
 public:
  explicit ChannelConnection(const std::string& path);
  ~ChannelConnection();
  ChannelConnection(const ChannelConnection&) = delete;
  ChannelConnection& operator=(const ChannelConnection&) = delete;

  // Sends one packet with these descriptors and returns the answer; an answer without a result when
  // the server has closed the connection.
  v1::SharedMemoryResponse Call(const std::string& packet, const std::vector<int>& fds = {});
  // Without waiting for the answer.
  void Send(const std::string& packet, const std::vector<int>& fds = {});
  v1::SharedMemoryResponse Receive();
  // The descriptor that came with the last answer, the caller's now; negative if none did.
  int TakeFd();

  v1::SharedMemoryResponse Create(std::size_t bytes, const std::string& tenant = "");
  // The same; fails the test when the server refuses.
  std::unique_ptr<SharedMemory> MustCreate(std::size_t bytes, const std::string& tenant = "");
  v1::SharedMemoryResponse Release(const std::string& region_id);

 private:
  int fd_;
  int received_fd_ = -1;
};

// Moves the tensor's data to an offset of the memory, to be found there by the server.
void MoveToSharedMemory(const SharedMemory& memory, std::size_t offset, v1::Tensor* tensor);

}  // namespace attention::testing
