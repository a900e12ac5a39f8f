// The messages that a stream is to write, one at a time.
//
// Thread-safety: none.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <deque>
#include <iterator>
#include <utility>
#include <vector>

namespace attention::client::internal {

class WriteQueue {
 public:
  void Push(grpc::ByteBuffer message) { queue_.push_back(std::move(message)); }
  // In order, before all others that are not being written.
  void PushFirst(std::vector<grpc::ByteBuffer> messages) {
    queue_.insert(queue_.begin() + (is_writing_ ? 1 : 0), std::make_move_iterator(messages.begin()),
                  std::make_move_iterator(messages.end()));
  }

  // The message to write now, which stays here until OnWritten; null when there is none.
  const grpc::ByteBuffer* StartNext() {
    if (queue_.empty()) return nullptr;
    is_writing_ = true;
    return &queue_.front();
  }
  void OnWritten() {
    queue_.pop_front();
    is_writing_ = false;
  }
  void Clear() {
    queue_.clear();
    is_writing_ = false;
  }

  bool is_writing() const { return is_writing_; }
  // Neither written nor being written.
  size_t num_waiting() const { return queue_.size() - (is_writing_ ? 1 : 0); }

 private:
  std::deque<grpc::ByteBuffer> queue_;
  bool is_writing_ = false;  // the front
};

}  // namespace attention::client::internal
