#include "tests/unit/client/loadgen/fake_server.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/quantized_row.h"
#include "kernels/reference/reference_attention.h"

namespace attention::loadgen {
namespace {

DType KernelDType(client::DType dtype) {
  switch (dtype) {
    case client::DType::kFloat16:
      return DType::kFloat16;
    case client::DType::kBFloat16:
      return DType::kBFloat16;
    case client::DType::kInt8:
      return DType::kInt8;
    case client::DType::kFloat8E4M3:
      return DType::kFloat8E4M3;
    default:
      return DType::kFloat32;
  }
}

RowsView Rows(const client::TensorView& tensor) {
  return DenseRows(tensor.data, KernelDType(tensor.dtype), tensor.shape[1], tensor.shape[2]);
}

float RoundedElement(DType dtype, float x) {
  float bits = 0;
  StoreElement(&bits, dtype, 0, x);
  return LoadElement(&bits, dtype, 0);
}

// Rows that went through a cache of `kv_dtype`, in the type that they came in.
std::string CachedBytes(const client::TensorView& tensor, DType kv_dtype) {
  std::string bytes(static_cast<const char*>(tensor.data), tensor.num_bytes());
  const DType dtype = KernelDType(tensor.dtype);
  if (dtype == kv_dtype) return bytes;
  const std::int64_t dim = tensor.shape.back();
  for (std::int64_t row = 0; row < tensor.num_elements(); row += dim) {
    float max = 0;
    for (std::int64_t i = row; i < row + dim; ++i) {
      max = std::max(max, std::abs(LoadElement(bytes.data(), dtype, i)));
    }
    const RowScale scale = RowScale::Of(kv_dtype, max);
    for (std::int64_t i = row; i < row + dim; ++i) {
      const float x = LoadElement(bytes.data(), dtype, i);
      const float cached =
          HasRowScales(kv_dtype)
              ? DequantizedElement(kv_dtype, QuantizedElement(kv_dtype, x, scale), scale.scale)
              : RoundedElement(kv_dtype, x);
      StoreElement(bytes.data(), dtype, i, cached);
    }
  }
  return bytes;
}

}  // namespace

absl::Duration FakeClock::Now() const {
  absl::MutexLock lock(&mutex_);
  return now_;
}

void FakeClock::SleepUntil(absl::Duration time, const std::atomic<bool>&) {
  absl::MutexLock lock(&mutex_);
  now_ = std::max(now_, time);
}

void FakeClock::Advance(absl::Duration by) {
  absl::MutexLock lock(&mutex_);
  now_ += by;
}

void FakeServer::Hold() {
  absl::MutexLock lock(&mutex_);
  is_holding_ = true;
}

void FakeServer::Release() {
  {
    absl::MutexLock lock(&mutex_);
    is_holding_ = false;
  }
  ReleaseHeld();
}

void FakeServer::ReleaseHeld() {
  std::vector<std::function<void()>> held;
  {
    absl::MutexLock lock(&mutex_);
    held.swap(held_);
  }
  for (const auto& answer : held) answer();
}

void FakeServer::SetCreateStatus(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  create_status_ = std::move(status);
}

void FakeServer::SetCreateStatusAfter(int count, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  creates_until_full_ = count;
  create_status_ = std::move(status);
}

std::vector<int> FakeServer::stream_targets() const {
  absl::MutexLock lock(&mutex_);
  return stream_targets_;
}

std::int64_t FakeServer::num_requests() const {
  absl::MutexLock lock(&mutex_);
  return num_requests_;
}
int FakeServer::num_held() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(held_.size());
}
int FakeServer::max_held() const {
  absl::MutexLock lock(&mutex_);
  return max_held_;
}
int FakeServer::num_sessions() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(sessions_.size());
}
int FakeServer::num_created() const {
  absl::MutexLock lock(&mutex_);
  return num_created_;
}
std::int64_t FakeServer::session_rows(std::size_t session, int layer) const {
  absl::MutexLock lock(&mutex_);
  const auto found = std::next(sessions_.begin(), static_cast<std::ptrdiff_t>(session));
  return found->second.layers.at(layer).rows;
}

absl::Status FakeServer::Begin(std::int64_t* number) {
  {
    absl::MutexLock lock(&mutex_);
    *number = num_requests_++;
  }
  return on_request ? on_request(*number) : absl::OkStatus();
}

client::Tensor FakeServer::Compute(const client::TensorView& q, const client::TensorView& k,
                                   const client::TensorView& v,
                                   const client::AttentionConfig& config, std::int64_t number) {
  const client::Shape shape = {q.shape[0], q.shape[1], v.shape[2]};
  std::vector<float> output(static_cast<std::size_t>(client::NumElements(shape)));
  if (is_computing) {
    AttentionTask task;
    task.params = {.num_q_heads = static_cast<int>(q.shape[1]),
                   .num_kv_heads = static_cast<int>(k.shape[1]),
                   .head_dim_qk = static_cast<int>(q.shape[2]),
                   .head_dim_v = static_cast<int>(v.shape[2]),
                   .softmax_scale = DefaultSoftmaxScale(static_cast<int>(q.shape[2])),
                   .is_causal = config.is_causal,
                   .window_left = config.window_left.value_or(-1),
                   .window_right = config.window_right.value_or(-1)};
    task.q_len = q.shape[0];
    task.kv_len = k.shape[0];
    task.first_query_position = task.kv_len - task.q_len;
    task.q = Rows(q);
    task.k = Rows(k);
    task.v = Rows(v);
    const reference::ReferenceResult result = reference::ReferenceAttention(task);
    std::transform(result.o.begin(), result.o.end(), output.begin(),
                   [](double value) { return static_cast<float>(value); });
  }
  if (number == corrupted_answer) output[0] += corruption;
  return client::Tensor::FromFloats(output, shape, q.dtype);
}

void FakeServer::Attend(const client::AttendRequest& request, const client::CallOptions&,
                        client::Callback<client::AttendResult> done) {
  std::int64_t number = 0;
  const absl::Status status = Begin(&number);
  std::function<void()> answer = [status, done] { done(status); };
  if (status.ok()) {
    client::AttendResult result;
    result.output = Compute(request.q, request.k, request.v, request.config, number);
    result.timing = timing;
    answer = [result, done] { done(result); };
  }
  {
    absl::MutexLock lock(&mutex_);
    if (is_holding_) {
      held_.push_back(std::move(answer));
      max_held_ = std::max(max_held_, static_cast<int>(held_.size()));
      return;
    }
  }
  answer();
}

client::SessionStepResult FakeServer::StepOne(const client::SessionStep& step) {
  client::SessionStepResult result;
  std::int64_t number = -1;
  if (step.q.is_present()) result.status = Begin(&number);
  if (!result.status.ok()) return result;
  absl::MutexLock lock(&mutex_);
  const auto found = sessions_.find(step.handle.session_id);
  if (found == sessions_.end()) {
    result.status = absl::NotFoundError("no such session");
    return result;
  }
  LayerKv& layer = found->second.layers[step.layer];
  if (step.expected_position != layer.rows) {
    result.status = absl::FailedPreconditionError(absl::StrCat("the layer has ", layer.rows));
    return result;
  }
  const DType kv_dtype = KernelDType(found->second.geometry.kv_dtype);
  layer.k += CachedBytes(step.k, kv_dtype);
  layer.v += CachedBytes(step.v, kv_dtype);
  layer.rows += step.k.shape[0];
  result.position = layer.rows;
  if (!step.q.is_present()) return result;
  const client::TensorView k(layer.k.data(), step.k.dtype,
                             {layer.rows, step.k.shape[1], step.k.shape[2]});
  const client::TensorView v(layer.v.data(), step.v.dtype,
                             {layer.rows, step.v.shape[1], step.v.shape[2]});
  result.output = Compute(step.q, k, v, step.config, number);
  return result;
}

void FakeServer::Step(const client::StepRequest& request, const client::CallOptions&,
                      client::Callback<client::StepResult> done) {
  client::StepResult result;
  result.timing = timing;
  for (const client::SessionStep& step : request.steps) result.results.push_back(StepOne(step));
  done(std::move(result));
}

// Answers as Step does.
class FakeServer::FakeStream final : public client::StepStream {
 public:
  explicit FakeStream(FakeServer& server) : server_(server), epoch_(server.stream_epoch_) {}

  void StepAsync(const client::StepRequest& request, Callback done) override {
    if (!status().ok()) return done(status());
    ++server_.num_stream_requests_;
    server_.Step(request, {}, std::move(done));
  }
  void CreateSessionAsync(const client::SessionOptions& request, SessionCallback done) override {
    if (!status().ok()) return done(status());
    ++server_.num_created_on_streams_;
    server_.CreateSession(request, {}, std::move(done));
  }
  absl::Status Finish() override { return status(); }
  void Cancel() override {}
  absl::Status status() const override {
    if (server_.stream_epoch_ == epoch_) return absl::OkStatus();
    return absl::UnavailableError("the stream broke");
  }

 private:
  FakeServer& server_;
  const int epoch_;
};

void FakeServer::CreateSession(const client::SessionOptions& request, const client::CallOptions&,
                               client::Callback<client::SessionInfo> done) {
  client::SessionInfo info;
  info.geometry = request.geometry;
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (creates_until_full_ > 0) {
      --creates_until_full_;
    } else {
      status = create_status_;
    }
  }
  if (!status.ok()) return done(status);
  {
    absl::MutexLock lock(&mutex_);
    info.handle.session_id = absl::StrCat("session-", num_created_++);
    sessions_[info.handle.session_id].geometry = request.geometry;
  }
  done(info);
}

void FakeServer::DeleteSession(const client::SessionHandle& handle, const client::CallOptions&,
                               client::StatusCallback done) {
  {
    absl::MutexLock lock(&mutex_);
    sessions_.erase(handle.session_id);
  }
  done(absl::OkStatus());
}

void FakeServer::GetServerInfo(const client::CallOptions&,
                               client::Callback<client::ServerInfo> done) {
  client::ServerInfo info;
  info.version = "0.1.0";
  info.commit = "abc";
  info.server_name = "fake";
  client::Device device;
  device.backend = "cpu";
  device.name = "fake processor";
  device.is_used = true;
  info.devices = {device};
  done(info);
}

absl::Status FakeServer::WaitUntilReady(absl::Time) { return ready_status; }

absl::StatusOr<std::unique_ptr<client::StepStream>> FakeServer::OpenStepStream(
    const client::StepStreamOptions& options) {
  ++num_streams_;
  absl::MutexLock lock(&mutex_);
  stream_targets_.push_back(options.target);
  return std::make_unique<FakeStream>(*this);
}

}  // namespace attention::loadgen
