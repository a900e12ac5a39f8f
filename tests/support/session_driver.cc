#include "tests/support/session_driver.h"

#include <algorithm>

namespace attention::testing {

v1::CreateSessionRequest MakeCreateRequest(const SessionSpec& spec) {
  v1::CreateSessionRequest request;
  v1::SessionGeometry* geometry = request.mutable_geometry();
  geometry->set_num_layers(spec.num_layers);
  geometry->set_num_kv_heads(spec.num_kv_heads);
  geometry->set_head_dim_qk(spec.head_dim_qk);
  geometry->set_head_dim_v(spec.head_dim_v);
  geometry->set_kv_dtype(spec.kv_dtype);
  if (spec.ttl > absl::ZeroDuration()) {
    const timespec ttl = absl::ToTimespec(spec.ttl);
    request.mutable_ttl()->set_seconds(ttl.tv_sec);
    request.mutable_ttl()->set_nanos(static_cast<int>(ttl.tv_nsec));
  }
  return request;
}

v1::Session MustCreate(ServerClient& server, const SessionSpec& spec, const std::string& tenant) {
  v1::CreateSessionResponse response;
  const auto context = NewContext(tenant);
  const grpc::Status status =
      server.sessions().CreateSession(context.get(), MakeCreateRequest(spec), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session();
}

v1::Session MustGet(ServerClient& server, const v1::SessionHandle& handle) {
  v1::GetSessionRequest request;
  *request.mutable_handle() = handle;
  v1::GetSessionResponse response;
  const grpc::Status status = server.sessions().GetSession(NewContext().get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session();
}

grpc::Status Delete(ServerClient& server, const v1::SessionHandle& handle,
                    const std::string& tenant) {
  v1::DeleteSessionRequest request;
  *request.mutable_handle() = handle;
  v1::DeleteSessionResponse response;
  return server.sessions().DeleteSession(NewContext(tenant).get(), request, &response);
}

v1::AttendRequest MakePrompt(std::int64_t length, v1::DType dtype, std::uint32_t seed) {
  v1::AttendRequest prompt =
      MakeAttendRequest({.dtype = dtype, .q_lens = {length}, .kv_lens = {length}, .seed = seed});
  prompt.mutable_config()->set_is_causal(true);
  return prompt;
}

v1::SessionStep MakeAppend(const v1::AttendRequest& prompt, const v1::SessionHandle& handle,
                           std::int64_t begin, std::int64_t end, int layer) {
  v1::SessionStep step;
  *step.mutable_handle() = handle;
  step.set_layer(layer);
  step.set_expected_position(begin);
  *step.mutable_k() = Rows(prompt.k(), begin, end);
  *step.mutable_v() = Rows(prompt.v(), begin, end);
  return step;
}

v1::SessionStep MakeAttend(const v1::AttendRequest& prompt, const v1::SessionHandle& handle,
                           std::int64_t begin, std::int64_t end, int layer) {
  v1::SessionStep step;
  *step.mutable_handle() = handle;
  step.set_layer(layer);
  step.set_expected_position(end);
  *step.mutable_q() = Rows(prompt.q(), begin, end);
  *step.mutable_config() = prompt.config();
  *step.mutable_returns() = prompt.returns();
  return step;
}

v1::SessionStep MakeStep(const v1::AttendRequest& prompt, const v1::SessionHandle& handle,
                         std::int64_t begin, std::int64_t end, int layer) {
  v1::SessionStep step = MakeAppend(prompt, handle, begin, end, layer);
  step.MergeFrom(MakeAttend(prompt, handle, begin, end, layer));
  step.set_expected_position(begin);
  return step;
}

v1::SessionStepResult RunStep(ServerClient& server, const v1::SessionStep& step,
                              const std::string& tenant) {
  v1::StepRequest request;
  *request.add_steps() = step;
  v1::StepResponse response;
  const grpc::Status status = server.sessions().Step(NewContext(tenant).get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.results_size(), 1);
  return response.results_size() == 1 ? response.results(0) : v1::SessionStepResult();
}

v1::SessionStepResult MustStep(ServerClient& server, const v1::SessionStep& step) {
  v1::SessionStepResult result = RunStep(server, step);
  EXPECT_FALSE(result.has_error()) << result.error().message();
  return result;
}

v1::SessionHandle MustFill(ServerClient& server, const v1::AttendRequest& prompt,
                           std::int64_t length, const SessionSpec& spec) {
  const v1::SessionHandle handle = MustCreate(server, spec).handle();
  for (int layer = 0; layer < spec.num_layers; ++layer) {
    MustStep(server, MakeAppend(prompt, handle, 0, length, layer));
  }
  return handle;
}

v1::AttendResponse AsResponse(const v1::SessionStepResult& result) {
  v1::AttendResponse response;
  if (result.has_output()) *response.mutable_output() = result.output();
  if (result.has_lse()) *response.mutable_lse() = result.lse();
  if (result.has_column_sums()) *response.mutable_column_sums() = result.column_sums();
  return response;
}

v1::AttendResponse Feed(ServerClient& server, const v1::AttendRequest& prompt,
                        const v1::SessionHandle& handle, std::int64_t chunk, int layer) {
  v1::AttendResponse all;
  const std::int64_t length = prompt.q().shape(0);
  for (std::int64_t begin = 0; begin < length; begin += chunk) {
    const std::int64_t end = std::min(begin + chunk, length);
    const v1::SessionStepResult result =
        MustStep(server, MakeStep(prompt, handle, begin, end, layer));
    EXPECT_EQ(result.position(), end);
    EXPECT_FALSE(result.is_replay());
    if (result.has_error()) return all;
    AppendRows(result.output(), all.mutable_output());
    if (result.has_lse()) AppendRows(result.lse(), all.mutable_lse());
  }
  return all;
}

bool SameAnswer(const v1::AttendResponse& a, const v1::AttendResponse& b) {
  return SameBits(a.output(), b.output()) && SameBits(a.lse(), b.lse());
}

}  // namespace attention::testing
