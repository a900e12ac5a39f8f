// The messages that a stream is to write, one at a time.
//
// Thread-safety: none.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

namespace attention::client::internal {

class WriteQueue {
 public:
  void Push(grpc::ByteBuffer message) { waiting_.push_back(std::move(message)); }
  // In order, before all others that are not being written.
  void PushFirst(std::vector<grpc::ByteBuffer> messages) {
    for (; !messages.empty(); messages.pop_back()) {
      waiting_.push_front(std::move(messages.back()));
    }
  }

  // The message to write now, which stays in its place until OnWritten; null when there is none.
  const grpc::ByteBuffer* StartNext() {
    if (waiting_.empty()) return nullptr;
    written_.Swap(&waiting_.front());
    waiting_.pop_front();
    is_writing_ = true;
    return &written_;
  }
  void OnWritten() {
    written_.Clear();
    is_writing_ = false;
  }
  void Clear() {
    waiting_.clear();
    OnWritten();
  }

  bool is_writing() const { return is_writing_; }
  // Neither written nor being written.
  std::size_t num_waiting() const { return waiting_.size(); }

 private:
  std::deque<grpc::ByteBuffer> waiting_;
  // Apart from the others: gRPC reads it meanwhile, and a queue that makes room assigns elements,
  // which copies a ByteBuffer (it has no move) and leaks one that is assigned to itself.
  grpc::ByteBuffer written_;
  bool is_writing_ = false;
};

}  // namespace attention::client::internal
