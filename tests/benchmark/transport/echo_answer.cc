#include "tests/benchmark/transport/echo_answer.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/benchmark/transport/settings.h"

namespace attention::bench {
namespace {

const std::vector<char>& StoredAnswer() {
  static const auto* bytes = new std::vector<char>(kMaxAnswerBytes, 'a');
  return *bytes;
}

// The reader looks at one slice after another, so this touches the first alone.
AnswerBytes Header(grpc::ByteBuffer* request) {
  grpc::ProtoBufferReader reader(request);
  AnswerBytes header = 0;
  std::size_t filled = 0;
  const void* data = nullptr;
  int size = 0;
  while (filled < sizeof(header) && reader.Next(&data, &size)) {
    const std::size_t count = std::min(sizeof(header) - filled, static_cast<std::size_t>(size));
    std::memcpy(reinterpret_cast<char*>(&header) + filled, data, count);
    filled += count;
  }
  return header;
}

}  // namespace

grpc::ByteBuffer EchoAnswer(grpc::ByteBuffer* request) {
  const AnswerBytes size = Header(request);
  if (size == kEchoAll) return std::move(*request);
  const grpc::Slice slice(StoredAnswer().data(), std::min<std::size_t>(size, StoredAnswer().size()),
                          grpc::Slice::STATIC_SLICE);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace attention::bench
