#include "tests/benchmark/transport/echo_answer.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstdlib>
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

grpc::ByteBuffer CopiedEchoAnswer(grpc::ByteBuffer* request) {
  static thread_local std::vector<char> copy(kMaxAnswerBytes);
  std::vector<grpc::Slice> slices;
  if (!request->Dump(&slices).ok()) return {};
  std::size_t copied = 0;
  for (const grpc::Slice& slice : slices) {
    const std::size_t count = std::min(slice.size(), copy.size() - copied);
    std::memcpy(copy.data() + copied, slice.begin(), count);
    copied += count;
  }
  const AnswerBytes wanted = Header(request);
  const std::size_t size = wanted == kEchoAll ? copied : std::min<std::size_t>(wanted, copy.size());
  void* answer = std::malloc(size);
  // The answer is filled with a copied byte, so that no compiler leaves the copy out.
  std::memset(answer, copied > 0 ? copy[copied - 1] : 0, size);
  const grpc::Slice slice(answer, size, std::free);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace attention::bench
