// A client of the shared-memory lane, by hand: what a user without the SDK would write.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "attention/v1/shared_memory.pb.h"
#include "attention/v1/tensor.pb.h"

namespace attention::testing {

// Memory that can be shared: a memfd, sealed as the server asks unless told otherwise.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes, bool is_sealed = true);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int fd() const { return fd_; }
  char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  int fd_;
  char* data_;
  std::size_t size_;
};

// A connection to the lane's socket. Fails the test when it cannot connect.
class LaneConnection {
 public:
  explicit LaneConnection(const std::string& path);
  ~LaneConnection();
  LaneConnection(const LaneConnection&) = delete;
  LaneConnection& operator=(const LaneConnection&) = delete;

  // Sends one packet with these descriptors and returns the answer; an answer without a result when
  // the server has closed the connection.
  v1::LaneResponse Call(const std::string& packet, const std::vector<int>& fds);
  v1::LaneResponse Register(const SharedMemory& memory, const std::string& tenant = "");
  v1::LaneResponse Release(const std::string& region_id);

 private:
  int fd_;
};

// Moves the tensor's data to an offset of the memory, to be found there by the server.
void MoveToSharedMemory(const SharedMemory& memory, const std::string& region_id,
                        std::size_t offset, v1::Tensor* tensor);

}  // namespace attention::testing
