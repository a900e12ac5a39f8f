// Services whose unary calls come before their messages.
//
// gRPC reads a unary call's message before it tells of the call, however large it is and however
// long it takes. To a server a unary method is a stream of one message each way. Declared as such,
// a call comes when its headers have: it can be refused, timed and ended before there is a message.
// Clients see no difference.
#pragma once

#include <google/protobuf/descriptor.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include "kernels/base/check.h"

namespace attention::server {

// To be the base of `Generated`'s WithRawMethod_ or WithAsyncMethod_ classes.
template <typename Generated>
class TakenAtHeaders : public Generated::Service {
 public:
  TakenAtHeaders() {
    for (int i = 0; i < Descriptor().method_count(); ++i) {
      // A handler is for services that gRPC calls; this one asks.
      if (!Descriptor().method(i)->client_streaming()) this->MarkMethodStreamed(i, nullptr);
    }
  }

 protected:
  static int IndexOf(const char* method) {
    const auto* descriptor = Descriptor().FindMethodByName(method);
    ATTENTION_CHECK(descriptor != nullptr);
    return descriptor->index();
  }

  // Asks for the next call of a method with one request.
  template <typename Channel>
  void RequestAtHeaders(int index, grpc::ServerContext* context, Channel* channel,
                        grpc::ServerCompletionQueue* queue, void* tag) {
    this->RequestAsyncBidiStreaming(index, context, channel, queue, queue, tag);
  }

 private:
  static const google::protobuf::ServiceDescriptor& Descriptor() {
    const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(
        Generated::service_full_name());
    ATTENTION_CHECK(descriptor != nullptr);
    return *descriptor;
  }
};

}  // namespace attention::server
