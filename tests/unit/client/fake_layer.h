// A layer's cache behind a step stream, whose shared memory the test may take away.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <cstdint>

#include "attention/v1/session_service.pb.h"

namespace attention::client {

// Appends in order, and refuses what is out of order.
class OneLayer {
 public:
  // Refuses tensors in shared memory for as long as this is set.
  std::atomic<bool> is_lost = false;

  grpc::Status Serve(
      grpc::ServerReaderWriter<v1::StepStreamResponse, v1::StepStreamRequest>* stream) {
    v1::StepStreamRequest request;
    while (stream->Read(&request)) {
      v1::StepStreamResponse response;
      response.set_request_id(request.request_id());
      for (const v1::SessionStep& step : request.request().steps()) {
        Apply(step, response.mutable_response()->add_results());
      }
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

  std::int64_t length() const { return length_; }

 private:
  void Apply(const v1::SessionStep& step, v1::SessionStepResult* result) {
    if (is_lost && step.k().has_shared_memory()) {
      result->mutable_error()->set_code(grpc::NOT_FOUND);
      result->mutable_error()->set_reason("REGION_NOT_FOUND");
    } else if (!step.has_k()) {  // attends over all there is
      result->set_position(length_);
    } else if (step.expected_position() != length_) {
      result->mutable_error()->set_code(grpc::FAILED_PRECONDITION);
      result->mutable_error()->set_reason("POSITION_MISMATCH");
    } else {
      length_ += step.k().shape(0);
      result->set_position(length_);
    }
  }

  std::atomic<std::int64_t> length_ = 0;
};

}  // namespace attention::client
