// Queries, keys and values of real models on real text, through the whole server.
#include "tests/support/model_fixture.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

class RealModelTest : public ServiceFixture {
 protected:
  static v1::AttendResponse AttendOnce(const v1::AttendRequest& request) {
    v1::AttendResponse response;
    const grpc::Status status = Attend(shared_server(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
};

// 9 query heads on 3 KV heads of 64, causal, bfloat16.
const SessionSpec kSmolLm{
    .num_kv_heads = 3, .head_dim_qk = 64, .head_dim_v = 64, .kv_dtype = v1::DTYPE_BFLOAT16};

TEST_F(RealModelTest, SmolLmPromptInOneStatelessRequest) {
  const ModelFixture model("smollm2");
  for (const int layer : model.layers()) {
    EXPECT_EQ(model.FindMismatch(layer, AttendOnce(model.Request(layer))), "") << layer;
  }
}

TEST_F(RealModelTest, SmolLmPromptThroughASessionWholeInChunksAndTokenByToken) {
  const ModelFixture model("smollm2");
  for (const int layer : model.layers()) {
    SCOPED_TRACE(layer);
    const v1::AttendRequest prompt = model.Request(layer);
    const v1::AttendResponse stateless = AttendOnce(prompt);
    for (const std::int64_t chunk : {47, 16, 5, 1}) {
      SCOPED_TRACE(chunk);
      const v1::SessionHandle handle = MustCreate(shared_server(), kSmolLm).handle();
      const v1::AttendResponse fed = Feed(shared_server(), prompt, handle, chunk);
      EXPECT_EQ(model.FindMismatch(layer, fed), "");
      EXPECT_TRUE(SameAnswer(fed, stateless)) << "not the same bits";
    }
  }
}

TEST_F(RealModelTest, SmolLmLayersOfOneSessionTokenByToken) {
  const ModelFixture model("smollm2");
  SessionSpec spec = kSmolLm;
  spec.num_layers = 15;
  const v1::SessionHandle handle = MustCreate(shared_server(), spec).handle();
  std::map<int, v1::AttendResponse> answers;
  for (std::int64_t token = 0; token < 47; ++token) {
    for (const int layer : model.layers()) {
      const v1::SessionStepResult result = MustStep(
          shared_server(), MakeStep(model.Request(layer), handle, token, token + 1, layer));
      AppendRows(result.output(), answers[layer].mutable_output());
      AppendRows(result.lse(), answers[layer].mutable_lse());
    }
  }
  for (const int layer : model.layers()) {
    EXPECT_EQ(model.FindMismatch(layer, answers[layer]), "") << layer;
  }
}

TEST_F(RealModelTest, MiniLmAsADenseBatchWithLengths) {
  const ModelFixture model("minilm");
  ASSERT_EQ(model.lengths(), (std::vector<std::int64_t>{13, 8, 5}));
  for (const int layer : model.layers()) {
    v1::AttendRequest request = model.Request(layer);
    for (const std::int64_t length : model.lengths()) {
      request.add_q_lens(length);
      request.add_kv_lens(length);
    }
    EXPECT_EQ(model.FindMismatch(layer, AttendOnce(request)), "") << layer;
  }
}

TEST_F(RealModelTest, MiniLmAsADenseBatchWithAMask) {
  const ModelFixture model("minilm");
  v1::Tensor mask = ZeroTensor(v1::DTYPE_BOOL, {3, 1, 13, 13});
  for (std::int64_t i = 0; i < NumElements(mask); ++i) {
    const std::int64_t length = model.lengths()[static_cast<std::size_t>(i / (13 * 13))];
    const bool is_visible = i / 13 % 13 < length && i % 13 < length;
    (*mask.mutable_data())[static_cast<std::size_t>(i)] = is_visible ? 1 : 0;
  }
  for (const int layer : model.layers()) {
    v1::AttendRequest request = model.Request(layer);
    *request.mutable_mask() = mask;
    EXPECT_EQ(model.FindMismatch(layer, AttendOnce(request)), "") << layer;
  }
}

// The rows of sequence `index` of a dense batch.
v1::Tensor SequenceOf(const v1::Tensor& batch, std::int64_t index, std::int64_t length) {
  v1::Tensor sequence = Rows(batch, index, index + 1);
  sequence.mutable_shape()->erase(sequence.shape().begin());
  return Rows(sequence, 0, length);
}

TEST_F(RealModelTest, MiniLmPackedIsTheDenseBatchWithoutItsPadding) {
  const ModelFixture model("minilm");
  for (const int layer : model.layers()) {
    v1::AttendRequest dense = model.Request(layer);
    v1::AttendRequest packed;
    packed.mutable_returns()->set_lse(true);
    for (std::size_t i = 0; i < model.lengths().size(); ++i) {
      const std::int64_t length = model.lengths()[i];
      const auto index = static_cast<std::int64_t>(i);
      for (v1::AttendRequest* request : {&dense, &packed}) {
        request->add_q_lens(length);
        request->add_kv_lens(length);
      }
      AppendRows(SequenceOf(dense.q(), index, length), packed.mutable_q());
      AppendRows(SequenceOf(dense.k(), index, length), packed.mutable_k());
      AppendRows(SequenceOf(dense.v(), index, length), packed.mutable_v());
    }
    const v1::AttendResponse expected = AttendOnce(dense);
    const v1::AttendResponse actual = AttendOnce(packed);
    v1::Tensor rows;
    for (std::size_t i = 0; i < model.lengths().size(); ++i) {
      AppendRows(SequenceOf(expected.output(), static_cast<std::int64_t>(i), model.lengths()[i]),
                 &rows);
    }
    EXPECT_TRUE(SameBits(actual.output(), rows)) << layer;
  }
}

}  // namespace
}  // namespace attention::testing
