// Wrong layer calls, and what becomes of the memory of layers.
#include <fstream>
#include <future>

#include "tests/support/layer_driver.h"

namespace attention::testing {
namespace {

constexpr auto kInvalid = grpc::INVALID_ARGUMENT;

class BadLayerTest : public ServiceFixture {
 protected:
  BadLayerTest() : layer_(MakeLayer(SmallLayerConfig(), 1)) {}

  // The server's answer to the upload after `change`; expects that no layer was registered.
  grpc::Status UploadChanged(
      const std::function<void(std::vector<v1::CreateLayerRequest>&)>& change) {
    auto messages = UploadOf(layer_, "bad", std::size_t{1} << 20);
    change(messages);
    const grpc::Status status = Upload(shared_server(), messages);
    ExpectNothingRegistered();
    return status;
  }
  void ExpectNothingRegistered() {
    v1::GetLayerRequest request;
    request.set_layer_id("bad");
    v1::GetLayerResponse response;
    EXPECT_THAT(LayerStub(shared_server())->GetLayer(NewContext().get(), request, &response),
                FailsBecause(grpc::NOT_FOUND, "LAYER_NOT_FOUND"));
  }
  static v1::Capacity CapacityFor(ServerClient& server, const std::string& tenant) {
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(server.info().GetServerInfo(NewContext(tenant).get(), {}, &info).ok());
    return info.capacity();
  }
  static std::int64_t LayerBytes(ServerClient& server) {
    return CapacityFor(server, "").layer_bytes();
  }
  // The first message of a tensor of the upload.
  static v1::LayerTensor* Begun(std::vector<v1::CreateLayerRequest>& messages,
                                v1::LayerTensorName name) {
    for (v1::CreateLayerRequest& message : messages) {
      if (message.has_tensor() && message.tensor().name() == name) return message.mutable_tensor();
    }
    return nullptr;
  }
  static void Delete(ServerClient& server, const std::string& id) {
    v1::DeleteLayerRequest request;
    request.set_layer_id(id);
    v1::DeleteLayerResponse response;
    EXPECT_TRUE(LayerStub(server)->DeleteLayer(NewContext().get(), request, &response).ok());
  }

  LayerCase layer_;
};

TEST_F(BadLayerTest, UploadsThatAreNotWhatTheyDeclareAreRefusedByName) {
  using Messages = std::vector<v1::CreateLayerRequest>;
  constexpr auto kWk = v1::LAYER_TENSOR_NAME_W_K;
  const std::int64_t bytes_before = LayerBytes(shared_server());
  EXPECT_THAT(UploadChanged([](Messages& m) { m.erase(m.begin()); }),
              FailsWith(kInvalid, "layer is missing, expected in the first message"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m.push_back(m[0]); }),
              FailsWith(kInvalid, "layer was sent twice"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m.clear(); }),
              FailsWith(kInvalid, "layer is missing"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m[0].mutable_layer()->clear_config(); }),
              FailsWith(kInvalid, "layer.config is missing"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m.erase(m.begin() + 2); }),
              FailsWith(kInvalid, "w_k is missing, expected a tensor"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m.push_back(m[2]); }),
              FailsWith(kInvalid, "w_k was sent twice"));
  EXPECT_THAT(
      UploadChanged([&](Messages& m) { Begun(m, kWk)->mutable_tensor()->set_shape(0, 33); }),
      FailsWith(kInvalid, "w_k.shape is [33, 48], expected [32, 48]"));
  EXPECT_THAT(UploadChanged([&](Messages& m) {
                Begun(m, kWk)->mutable_tensor()->set_dtype(v1::DTYPE_FLOAT16);
              }),
              FailsWith(kInvalid, "w_k.dtype is float16, expected the layer's dtype (float32)"));
  EXPECT_THAT(UploadChanged([&](Messages& m) {
                Begun(m, kWk)->mutable_tensor()->mutable_data()->pop_back();
              }),
              FailsWith(kInvalid, "w_k has 6143 bytes, expected 6144"));
  EXPECT_THAT(UploadChanged([&](Messages& m) { m.insert(m.begin() + 3, {})->set_chunk("x"); }),
              FailsWith(kInvalid, "w_k has 6145 bytes or more, expected 6144"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m.insert(m.begin() + 1, {})->set_chunk("x"); }),
              FailsWith(kInvalid, "chunk came first"));
  EXPECT_THAT(UploadChanged([&](Messages& m) {
                Begun(m, kWk)->set_name(static_cast<v1::LayerTensorName>(99));
              }),
              FailsWith(kInvalid, "tensor.name is 99"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m.emplace_back(); }),
              FailsWith(kInvalid, "part is missing"));
  EXPECT_THAT(
      UploadChanged([](Messages& m) { m[0].mutable_layer()->set_sha256(std::string(32, 'x')); }),
      FailsBecause(kInvalid, "HASH_MISMATCH"));
  EXPECT_THAT(UploadChanged([](Messages& m) { m[0].mutable_layer()->set_sha256("short"); }),
              FailsWith(kInvalid, "sha256 has 5 bytes, expected 32 or none"));
  EXPECT_TRUE(WaitUntil([&] { return LayerBytes(shared_server()) == bytes_before; }))
      << "something stays reserved";
}

// Small embeddings may become large queries, keys and values.
TEST_F(BadLayerTest, WhatIsBetweenTheProjectionsCountsInTheResults) {
  TestServer own([](server::ServerConfig& config) { config.max_response_bytes = 256 << 10; });
  v1::ForwardRequest request;
  request.set_layer_id(MustCreateLayer(own, layer_));
  const auto forward = [&](std::int64_t rows) {
    *request.mutable_x() = RandomTensor(v1::DTYPE_FLOAT32, {rows, 48}, 1);
    v1::ForwardResponse response;
    return Forward(own, request, &response);
  };
  // 192 bytes of output a row, 512 of queries, keys and values, 256 of attention's output.
  EXPECT_TRUE(forward(273).ok());
  EXPECT_THAT(forward(274), FailsWith(kInvalid, "(max-response-bytes)"));
  EXPECT_TRUE(WaitUntil([&] { return own.Metric("attention_result_bytes") == 0; }));
}

TEST_F(BadLayerTest, NobodyLearnsFromItsOwnUploadWhatAnotherTenantHas) {
  TestServer own;
  const auto messages = UploadOf(layer_, "same", std::size_t{1} << 20);
  ASSERT_TRUE(Upload(own, messages, nullptr, "owner").ok());
  const std::int64_t bytes = CapacityFor(own, "owner").layer_bytes();
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(CapacityFor(own, "curious").layer_bytes(), 0);
  EXPECT_EQ(CapacityFor(own, "curious").num_layers(), 0);
  ASSERT_TRUE(Upload(own, messages, nullptr, "curious").ok());
  EXPECT_EQ(CapacityFor(own, "curious").layer_bytes(), bytes) << "as if it were the first";
  EXPECT_EQ(own.Metric("attention_layer_bytes"), 2 * bytes) << "the operator sees all";
}

TEST_F(BadLayerTest, ConfigsThatCannotBeAreRefusedByName) {
  const auto upload = [&](const std::function<void(v1::LayerConfig&)>& change) {
    return UploadChanged([&](auto& m) { change(*m[0].mutable_layer()->mutable_config()); });
  };
  EXPECT_THAT(upload([](auto& c) { c.set_model_dim(0); }),
              FailsWith(kInvalid, "layer.config.model_dim is 0, expected 1 to"));
  EXPECT_THAT(upload([](auto& c) { c.set_output_dim(65537); }),
              FailsWith(kInvalid, "output_dim is 65537, expected 1 to 65536"));
  EXPECT_THAT(upload([](auto& c) { c.set_num_q_heads(65536); }),
              FailsWith(kInvalid, "num_q_heads * head_dim_qk is"));
  EXPECT_THAT(upload([](auto& c) { c.set_context_dim(-1); }),
              FailsWith(kInvalid, "context_dim is"));
  EXPECT_THAT(upload([](auto& c) { c.set_num_kv_heads(3); }), FailsWith(kInvalid, "num_kv_heads"));
  EXPECT_THAT(upload([](auto& c) { c.set_head_dim_qk(577); }), FailsWith(kInvalid, "head_dim_qk"));
  EXPECT_THAT(upload([](auto& c) { c.set_dtype(v1::DTYPE_INT8); }),
              FailsWith(kInvalid, "config.dtype is DTYPE_INT8"));
  EXPECT_THAT(upload([](auto& c) { c.set_dtype(v1::DTYPE_FLOAT8_E4M3); }),
              FailsWith(kInvalid, "config.dtype is DTYPE_FLOAT8_E4M3"));
  EXPECT_THAT(upload([](auto& c) { c.mutable_rotary()->set_dim(3); }),
              FailsWith(kInvalid, "rotary.dim is 3, expected an even number"));
  EXPECT_THAT(upload([](auto& c) {
                c.mutable_rotary();
                c.set_context_dim(48);
              }),
              FailsWith(kInvalid, "rotary is set, expected none with cross-attention"));
  EXPECT_THAT(upload([](auto& c) {
                *c.mutable_attention()->mutable_sink_logits() = ZeroTensor(v1::DTYPE_FLOAT32, {3});
              }),
              FailsWith(kInvalid, "config.attention.sink_logits is DTYPE_FLOAT32 [3]"));
  EXPECT_THAT(upload([](auto& c) { c.mutable_attention()->set_soft_cap(-1); }),
              FailsWith(kInvalid, "layer.config.attention.soft_cap is -1, expected 0 (none)"));
  EXPECT_THAT(upload([](auto& c) {
                v1::Tensor* slopes = c.mutable_attention()->mutable_alibi_slopes();
                *slopes = ZeroTensor(v1::DTYPE_FLOAT32, {4});
                SetElement(slopes, 2, NAN);
              }),
              FailsWith(kInvalid, "layer.config.attention.alibi_slopes[2] is nan"));
  EXPECT_THAT(upload([](auto& c) { c.mutable_rotary()->mutable_custom()->add_inv_freq(1); }),
              FailsWith(kInvalid, "layer.config.rotary.custom.inv_freq has 1 entries, expected"));
  EXPECT_THAT(upload([](auto& c) {
                c.mutable_rotary()->mutable_custom();
                c.mutable_rotary()->set_theta(500);
              }),
              FailsWith(kInvalid, "layer.config.rotary.theta is 500, expected none with custom"));
  EXPECT_THAT(UploadChanged([](auto& m) { m[0].mutable_layer()->set_layer_id("a b"); }),
              FailsWith(kInvalid, "layer.layer_id is 'a b'"));
}

TEST_F(BadLayerTest, AStreamThatIsCutLeavesNothingBehind) {
  const std::int64_t before = LayerBytes(shared_server());
  const auto messages = UploadOf(layer_, "bad");
  for (const std::size_t sent : {std::size_t{1}, messages.size() / 2, messages.size()}) {
    const auto stub = LayerStub(shared_server());
    const auto context = NewContext();
    v1::CreateLayerResponse response;
    const auto writer = stub->CreateLayer(context.get(), &response);
    for (std::size_t i = 0; i < sent; ++i) ASSERT_TRUE(writer->Write(messages[i]));
    context->TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), grpc::CANCELLED);
    EXPECT_TRUE(WaitUntil([&] { return LayerBytes(shared_server()) == before; }));
    ExpectNothingRegistered();
  }
}

TEST_F(BadLayerTest, ANameIsTakenOnceButTheSameLayerMayComeAgain) {
  MustCreateLayer(shared_server(), layer_, "taken");
  const std::int64_t bytes = LayerBytes(shared_server());
  MustCreateLayer(shared_server(), layer_, "taken");
  MustCreateLayer(shared_server(), layer_, "the-same-weights");
  EXPECT_TRUE(WaitUntil([&] { return LayerBytes(shared_server()) == bytes; })) << "kept twice";
  EXPECT_THAT(Upload(shared_server(), UploadOf(MakeLayer(SmallLayerConfig(), 2), "taken")),
              FailsWith(grpc::ALREADY_EXISTS, "layer_id is 'taken'"));
  EXPECT_TRUE(Upload(shared_server(), UploadOf(layer_, "taken"), nullptr, "another").ok())
      << "names are each tenant's own";
  Delete(shared_server(), "taken");
  Delete(shared_server(), "the-same-weights");
  Delete(shared_server(), "the-same-weights");
}

TEST_F(BadLayerTest, CallsThatDoNotFitTheLayerAreRefusedByName) {
  const std::string id = MustCreateLayer(shared_server(), layer_);
  const auto forward = [&](const std::function<void(v1::ForwardRequest&)>& change) {
    v1::ForwardRequest request;
    request.set_layer_id(id);
    *request.mutable_x() = RandomTensor(v1::DTYPE_FLOAT32, {5, 48}, 1);
    change(request);
    v1::ForwardResponse response;
    return Forward(shared_server(), request, &response);
  };
  EXPECT_TRUE(forward([](auto&) {}).ok());
  EXPECT_THAT(forward([](auto& r) { r.set_layer_id("none"); }),
              FailsBecause(grpc::NOT_FOUND, "LAYER_NOT_FOUND"));
  v1::ForwardResponse response;
  v1::ForwardRequest others;
  others.set_layer_id(id);
  EXPECT_THAT(Forward(shared_server(), others, &response, "another"),
              FailsBecause(grpc::NOT_FOUND, "LAYER_NOT_FOUND"));
  EXPECT_THAT(forward([](auto& r) { r.clear_x(); }), FailsWith(kInvalid, "x is missing"));
  EXPECT_THAT(forward([](auto& r) {
                *r.mutable_x() = ZeroTensor(v1::DTYPE_FLOAT32, {5, 47});
              }),
              FailsWith(kInvalid, "x.shape is [5, 47], expected [rows, 48] or [batch, rows, 48]"));
  EXPECT_THAT(forward([](auto& r) { r.mutable_x()->mutable_data()->pop_back(); }),
              FailsWith(kInvalid, "x.data has 959 bytes, expected 960"));
  EXPECT_THAT(forward([](auto& r) { r.mutable_x()->set_dtype(v1::DTYPE_INT8); }),
              FailsWith(kInvalid, "x.dtype is DTYPE_INT8"));
  EXPECT_THAT(forward([](auto& r) { r.add_x_lens(4); }),
              FailsWith(kInvalid, "x_lens sum to 4, expected the 5 rows of x"));
  EXPECT_THAT(forward([](auto& r) { r.add_x_lens(-1); }),
              FailsWith(kInvalid, "x_lens[0] is -1, expected 0 to 5"));
  EXPECT_THAT(forward([](auto& r) { *r.mutable_context() = r.x(); }),
              FailsWith(kInvalid, "context is set, expected none: the layer is self-attention"));
  EXPECT_THAT(forward([](auto& r) { r.add_first_positions(-1); }),
              FailsWith(kInvalid, "first_positions[0] is -1"));
  EXPECT_THAT(forward([](auto& r) { *r.mutable_padding_mask() = ZeroTensor(v1::DTYPE_BOOL, {4}); }),
              FailsWith(kInvalid, "padding_mask.shape is [4], expected [5]"));
  EXPECT_THAT(forward([](auto& r) {
                *r.mutable_padding_mask() = ZeroTensor(v1::DTYPE_BOOL, {5});
                r.mutable_padding_mask()->mutable_data()->back() = 3;
              }),
              FailsWith(kInvalid, "padding_mask.data[4] is 3, expected 0 or 1"));
  v1::LayerConfig other = SmallLayerConfig();
  other.set_head_dim_v(8);
  const v1::SessionHandle misfit = MustCreateSessionFor(shared_server(), other);
  const v1::SessionHandle fit = MustCreateSessionFor(shared_server(), layer_.config);
  const auto with_session = [&](const v1::SessionHandle& handle,
                                const std::function<void(v1::LayerSession&)>& change) {
    return forward([&](auto& r) {
      *r.add_sessions()->mutable_handle() = handle;
      r.mutable_sessions(0)->set_expected_position(0);
      change(*r.mutable_sessions(0));
    });
  };
  EXPECT_THAT(
      with_session(misfit, [](auto&) {}),
      FailsWith(kInvalid, "sessions[0] has a geometry with head_dim_v 8, expected the layer's 16"));
  EXPECT_THAT(with_session(fit, [](auto& s) { s.set_layer(2); }),
              FailsWith(kInvalid, "sessions[0].layer is 2, expected 0 to 1"));
  EXPECT_THAT(with_session(fit, [](auto& s) { s.clear_expected_position(); }),
              FailsWith(kInvalid, "sessions[0].expected_position is missing"));
  EXPECT_THAT(with_session(fit, [](auto& s) { s.mutable_handle()->set_session_id("x"); }),
              FailsBecause(grpc::NOT_FOUND, "SESSION_NOT_FOUND"));
  EXPECT_TRUE(forward([](auto&) {}).ok());
}

TEST_F(BadLayerTest, CrossAttentionNeedsItsContext) {
  v1::LayerConfig config = SmallLayerConfig();
  config.set_context_dim(20);
  const std::string id = MustCreateLayer(shared_server(), MakeLayer(config, 3));
  v1::ForwardRequest request;
  request.set_layer_id(id);
  *request.mutable_x() = RandomTensor(v1::DTYPE_FLOAT32, {2, 48}, 1);
  v1::ForwardResponse response;
  EXPECT_THAT(Forward(shared_server(), request, &response),
              FailsWith(kInvalid, "context is missing, expected a tensor, or sessions"));
  *request.mutable_context() = RandomTensor(v1::DTYPE_FLOAT16, {3, 20}, 1);
  EXPECT_THAT(Forward(shared_server(), request, &response),
              FailsWith(kInvalid, "context.dtype is DTYPE_FLOAT16, expected that of x"));
}

TEST_F(BadLayerTest, GroupCountsThatDoNotDivideAreRefused) {
  v1::ConvertLayerRequest request;
  request.set_source_layer_id(MustCreateLayer(shared_server(), layer_));
  v1::ConvertLayerResponse response;
  for (const int heads : {0, -1, 3, 4}) {
    request.set_num_kv_heads(heads);
    EXPECT_THAT(LayerStub(shared_server())->ConvertLayer(NewContext().get(), request, &response),
                FailsWith(kInvalid, "expected a divisor of the source's 2 KV heads"));
  }
}

TEST_F(BadLayerTest, ThereIsRoomForSoManyBytesAndLayers) {
  TestServer server([](server::ServerConfig& config) {
    config.layer_capacity_bytes = 80 << 10;
    config.max_layers_per_tenant = 2;
  });
  MustCreateLayer(server, layer_, "1");
  const auto other = UploadOf(MakeLayer(SmallLayerConfig(), 2), "2");
  EXPECT_THAT(Upload(server, other), FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"))
      << "a tenant has nine tenths of it";
  EXPECT_THAT(Upload(server, other, nullptr, "another"),
              FailsBecause(grpc::RESOURCE_EXHAUSTED, "LAYER_BYTES_EXHAUSTED"));
  Delete(server, "1");
  // The thread that answered the upload may be about to let go of it.
  EXPECT_TRUE(WaitUntil([&] { return LayerBytes(server) == 0; }));
  MustCreateLayer(server, layer_, "2");
  Delete(server, "2");
  TestServer two([](server::ServerConfig& config) { config.max_layers_per_tenant = 2; });
  MustCreateLayer(two, layer_, "1");
  MustCreateLayer(two, layer_, "2");
  EXPECT_THAT(Upload(two, UploadOf(layer_, "3")),
              FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"));
  EXPECT_TRUE(Upload(two, UploadOf(layer_, "3"), nullptr, "another").ok());
}

TEST_F(BadLayerTest, ALayerIsDeletedWhileItIsInUse) {
  // Nothing is computed on the thread that receives calls, which the test goes on to make.
  TestServer server(SlowBackend(
      [](server::ServerConfig& config) { config.max_inline_work = absl::Nanoseconds(1); }));
  const LayerCase layer = MakeLayer(SmallLayerConfig(), 4);
  MustCreateLayer(server, layer, "busy");
  const std::int64_t bytes = LayerBytes(server);
  const v1::Tensor x = RandomTensor(v1::DTYPE_FLOAT32, {4, 48}, 5);
  v1::ForwardRequest request;
  request.set_layer_id("busy");
  *request.mutable_x() = x;
  v1::ForwardResponse response;
  BusyWorker busy(server);  // the call waits behind it
  auto call = std::async(std::launch::async, [&] { return Forward(server, request, &response); });
  EXPECT_TRUE(WaitUntil([&] { return server.Metric("attention_queued_requests") > 0; }));
  Delete(server, "busy");
  EXPECT_EQ(LayerBytes(server), bytes) << "the waiting call still needs the weights";
  v1::ForwardResponse none;
  EXPECT_THAT(Forward(server, request, &none), FailsBecause(grpc::NOT_FOUND, "LAYER_NOT_FOUND"));
  busy.Finish();
  EXPECT_TRUE(call.get().ok());
  EXPECT_EQ(FindMismatch(ExpectForward(layer, {.x = x}), response.output()), "");
  EXPECT_TRUE(WaitUntil([&] { return LayerBytes(server) == 0; }));
}

std::int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * 4096;
}

TEST_F(BadLayerTest, MemoryOfDeletedLayersIsReturned) {
  v1::LayerConfig config = SmallLayerConfig();
  config.set_model_dim(1024);
  config.set_output_dim(1024);
  config.set_num_q_heads(16);
  config.set_num_kv_heads(16);
  config.set_head_dim_qk(64);
  config.set_head_dim_v(64);
  LayerCase layer = MakeLayer(config, 6);  // 16 MiB
  const std::int64_t used = LayerBytes(shared_server());
  const auto create_all = [&](int count) {
    for (int i = 0; i < count; ++i) {
      SetElement(&layer.tensors[v1::LAYER_TENSOR_NAME_B_O], 0, static_cast<float>(i));
      ASSERT_TRUE(Upload(shared_server(), UploadOf(layer, std::to_string(i), 1 << 20)).ok());
    }
  };
  const auto delete_all = [&](int count) {
    for (int i = 0; i < count; ++i) Delete(shared_server(), std::to_string(i));
  };
  create_all(6);  // what allocators keep of uploads' buffers they have now
  delete_all(6);
  const std::int64_t before = ResidentBytes();
  create_all(6);
  EXPECT_GE(LayerBytes(shared_server()) - used, std::int64_t{6} * 16 << 20);
  // 96 MiB of weights, less and more what buffers of uploads come and go.
  EXPECT_GE(ResidentBytes() - before, std::int64_t{64} << 20);
  EXPECT_GE(shared_server().Metric("attention_layers"), 6);
  delete_all(6);
  EXPECT_TRUE(WaitUntil([&] { return LayerBytes(shared_server()) == used; }));
  EXPECT_LE(ResidentBytes() - before, std::int64_t{32} << 20);
}

TEST_F(BadLayerTest, AThousandLayersAreListedAndUsedInTurn) {
  TestServer server;
  v1::LayerConfig config = SmallLayerConfig();
  std::vector<std::string> ids;
  LayerCase layer = MakeLayer(config, 7);
  for (int i = 0; i < 1000; ++i) {
    SetElement(&layer.tensors[v1::LAYER_TENSOR_NAME_B_O], 0, static_cast<float>(i));
    ids.push_back(MustCreateLayer(server, layer));
  }
  const v1::Tensor x = RandomTensor(v1::DTYPE_FLOAT32, {1, 48}, 8);
  const LayerExpectation expected = ExpectForward(layer, {.x = x});
  for (int i = 0; i < 1000; ++i) {
    v1::ForwardRequest request;
    request.set_layer_id(ids[i]);
    *request.mutable_x() = x;
    const v1::Tensor y = MustForward(server, request).output();
    ASSERT_NEAR(ElementAt(y, 0), expected.y[0] - 999 + i, expected.tolerance + 1e-4) << i;
  }
  std::size_t listed = 0;
  v1::ListLayersRequest request;
  request.set_page_size(300);
  do {
    v1::ListLayersResponse page;
    ASSERT_TRUE(LayerStub(server)->ListLayers(NewContext().get(), request, &page).ok());
    listed += page.layers_size();
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, 1000u);
}

}  // namespace
}  // namespace attention::testing
