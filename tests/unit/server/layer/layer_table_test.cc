#include "server/layer/layer_table.h"

#include <gmock/gmock.h>

#include "kernels/reference/reference_projection.h"
#include "server/base/error_reason.h"
#include "server/layer/convert.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

LayerSpec Spec(int num_kv_heads = 4, DType dtype = DType::kFloat32) {
  LayerSpec spec;
  spec.dtype = dtype;
  spec.model_dim = 6;
  spec.output_dim = 5;
  spec.attention.num_q_heads = 4;
  spec.attention.num_kv_heads = num_kv_heads;
  spec.attention.head_dim_qk = 3;
  spec.attention.head_dim_v = 2;
  spec.attention.softmax_scale = 1;
  return spec;
}

std::vector<std::int64_t> WireShape(const LayerSpec& spec, LayerTensor tensor) {
  const LayerTensorShape shape = ShapeOf(spec, tensor);
  if (IsBias(tensor)) return {shape.out_features};
  return {shape.out_features, shape.in_features};
}

// Element i of tensor t is t + i / 64, which every dtype holds for the first dozens.
LayerTensors Tensors(const LayerSpec& spec, bool has_biases = true, float first = 0) {
  LayerTensors tensors(spec);
  for (int t = 0; t < kNumLayerTensors; ++t) {
    const auto tensor = static_cast<LayerTensor>(t);
    if (IsBias(tensor) && !has_biases) continue;
    const std::int64_t count = ShapeOf(spec, tensor).elements();
    std::string bytes(count * DTypeBytes(spec.dtype), '\0');
    for (std::int64_t i = 0; i < count; ++i) {
      StoreElement(bytes.data(), spec.dtype, i, static_cast<float>(t) + i / 64.0f);
    }
    if (t == 0) StoreElement(bytes.data(), spec.dtype, 0, first);
    EXPECT_TRUE(tensors.Begin(tensor, spec.dtype, WireShape(spec, tensor), bytes).ok());
  }
  return tensors;
}

class LayerTableTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::shared_ptr<const Layer>> Create(LayerTable& table, const std::string& id,
                                                      const LayerTensors& tensors,
                                                      const std::string& tenant = "a") {
    return Create(table, LayerTable::NewLayer{tenant, id, tensors.spec()}, tensors);
  }
  static absl::StatusOr<std::shared_ptr<const Layer>> Create(LayerTable& table,
                                                             const LayerTable::NewLayer& layer,
                                                             const LayerTensors& tensors) {
    auto reservation = table.Reserve(layer);
    if (!reservation.ok()) return reservation.status();
    return table.Create(layer, tensors, *std::move(reservation));
  }
  static std::string ReasonOf(const absl::Status& status) {
    const auto detail = GetErrorDetail(status);
    return detail ? detail->reason : "";
  }

  FakeClock clock_;
  TenantLimitsTable tenants_;
  std::unique_ptr<ProjectionBackend> projections_ = reference::MakeReferenceProjections();
  LayerTable table_{projections_.get(), {1 << 20, 3}, clock_, tenants_};
};

TEST_F(LayerTableTest, WeightsAreCountedOnceAndUntilNobodyHoldsThem) {
  const LayerTensors tensors = Tensors(Spec());
  auto first = *Create(table_, "1", tensors);
  const std::int64_t bytes = table_.weight_bytes();
  EXPECT_EQ(bytes, static_cast<std::int64_t>(first->weights->bytes()));
  auto same = *Create(table_, "2", tensors);
  EXPECT_EQ(same->weights, first->weights);
  EXPECT_EQ(table_.weight_bytes(), bytes);
  auto other = *Create(table_, "3", Tensors(Spec(), true, 7));
  EXPECT_NE(other->weights, first->weights);
  EXPECT_EQ(table_.weight_bytes(), 2 * bytes);
  other.reset();
  for (const char* id : {"1", "2", "3"}) ASSERT_TRUE(table_.Delete("a", id).ok());
  EXPECT_EQ(table_.num_layers(), 0);
  EXPECT_EQ(table_.weight_bytes(), bytes) << "first and same are still held";
  first.reset();
  same.reset();
  EXPECT_EQ(table_.weight_bytes(), 0);
}

// Else a tenant could try weights, and see from its bytes whether another has them.
TEST_F(LayerTableTest, EqualWeightsOfTwoTenantsAreCountedForEach) {
  const LayerTensors tensors = Tensors(Spec());
  auto mine = *Create(table_, "1", tensors, "a");
  const std::int64_t bytes = table_.weight_bytes();
  auto theirs = *Create(table_, "1", tensors, "b");
  EXPECT_NE(theirs->weights, mine->weights);
  EXPECT_EQ(table_.weight_bytes(), 2 * bytes);
  ASSERT_TRUE(Create(table_, "2", tensors, "b").ok());
  EXPECT_EQ(table_.weight_bytes("a"), bytes);
  EXPECT_EQ(table_.weight_bytes("b"), bytes);
  EXPECT_EQ(table_.num_layers("b"), 2);
  EXPECT_EQ(table_.weight_bytes("c"), 0);
  EXPECT_EQ(table_.num_layers("c"), 0);
  mine.reset();
  ASSERT_TRUE(table_.Delete("a", "1").ok());
  EXPECT_EQ(table_.weight_bytes("a"), 0);
  EXPECT_EQ(table_.weight_bytes("b"), bytes);
}

// --- The server's layers ---

TEST_F(LayerTableTest, TheServersLayersCountForNobodyAndShareTheirWeights) {
  const LayerTensors tensors = Tensors(Spec());
  const auto first = *Create(table_, {"", "1", Spec()}, tensors);
  const auto second = *Create(table_, {"", "2", Spec()}, tensors);
  EXPECT_EQ(first->weights, second->weights);
  EXPECT_EQ(table_.weight_bytes("a"), 0);
  EXPECT_EQ(table_.num_layers("a"), 0);
  EXPECT_EQ(table_.num_layers(), 2);
  const auto uploaded = *Create(table_, "3", tensors, "a");
  EXPECT_NE(uploaded->weights, first->weights);
  EXPECT_EQ(table_.weight_bytes("a"), static_cast<std::int64_t>(uploaded->weights->bytes()));
}

TEST_F(LayerTableTest, TenantsUseTheServersLayersAndChangeNoneOfThem) {
  const auto shared = *Create(table_, {"", "shared", Spec()}, Tensors(Spec()));
  EXPECT_EQ(*table_.Find("a", "shared"), shared);
  for (const absl::Status& status :
       {table_.Delete("a", "shared"), Create(table_, "shared", Tensors(Spec())).status(),
        table_.Convert("a", "shared", "shared", 1).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
    EXPECT_EQ(ReasonOf(status), "LAYER_READ_ONLY");
  }
  const auto converted = table_.Convert("a", "shared", "mine", 1);
  ASSERT_TRUE(converted.ok()) << converted.status();
  EXPECT_EQ((*converted)->tenant, "a");
  EXPECT_TRUE(table_.Delete("a", "mine").ok());
  EXPECT_EQ(*table_.Find("b", "shared"), shared);
}

TEST_F(LayerTableTest, WhoDoesNotSeeALayerOfTheServersMayTakeItsName) {
  const auto hidden = *Create(table_, {"", "x", Spec(), {"b", "c"}}, Tensors(Spec()));
  EXPECT_EQ(ReasonOf(table_.Find("a", "x").status()), "LAYER_NOT_FOUND");
  EXPECT_TRUE(table_.Delete("a", "x").ok()) << "as of a name that nobody has";
  const auto own = *Create(table_, "x", Tensors(Spec(), false));
  EXPECT_EQ(*table_.Find("a", "x"), own);
  EXPECT_EQ(*table_.Find("b", "x"), hidden);
}

TEST_F(LayerTableTest, ListsHaveTheServersLayersAmongTheTenants) {
  const auto ids = [&](const std::string& tenant, const std::string& after, std::size_t count) {
    std::vector<std::string> found;
    for (const auto& layer : table_.List(tenant, after, count)) found.push_back(layer->layer_id);
    return found;
  };
  for (const char* id : {"b", "d"}) {
    ASSERT_TRUE(Create(table_, {"", id, Spec()}, Tensors(Spec())).ok());
  }
  ASSERT_TRUE(Create(table_, {"", "c", Spec(), {"z"}}, Tensors(Spec())).ok());
  for (const char* id : {"a", "e"}) ASSERT_TRUE(Create(table_, id, Tensors(Spec())).ok());
  EXPECT_THAT(ids("a", "", 10), ::testing::ElementsAre("a", "b", "d", "e"));
  EXPECT_THAT(ids("a", "", 3), ::testing::ElementsAre("a", "b", "d"));
  EXPECT_THAT(ids("a", "b", 10), ::testing::ElementsAre("d", "e"));
  EXPECT_THAT(ids("z", "", 10), ::testing::ElementsAre("b", "c", "d"));
}

TEST_F(LayerTableTest, ATenantHasItsOwnBoundOfBytes) {
  const std::int64_t bytes = [&] {
    const auto layer = *Create(table_, "1", Tensors(Spec()));
    return table_.weight_bytes("a");
  }();
  tenants_.Replace({{.layer_bytes = bytes}, {}});
  const auto refused = table_.Reserve({"a", "2", Spec()});
  EXPECT_EQ(ReasonOf(refused.status()), "QUOTA_EXCEEDED");
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("its limit layer-bytes"));
  EXPECT_EQ(table_.weight_bytes(), bytes) << "nothing is held of what was refused";
  EXPECT_TRUE(table_.Reserve({"b", "2", Spec()}).ok());
  ASSERT_TRUE(table_.Delete("a", "1").ok());
  EXPECT_TRUE(table_.Reserve({"a", "2", Spec()}).ok());
}

TEST_F(LayerTableTest, LayersOfAllTenantsAreBounded) {
  LayerTable small(projections_.get(), {1 << 20, 3, {}, /*max_layers=*/2}, clock_, tenants_);
  ASSERT_TRUE(Create(small, "1", Tensors(Spec()), "a").ok());
  ASSERT_TRUE(Create(small, "1", Tensors(Spec()), "b").ok());
  const auto refused = Create(small, "1", Tensors(Spec()), "c");
  EXPECT_EQ(ReasonOf(refused.status()), "QUOTA_EXCEEDED");
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("max-layers allows (2)"));
}

TEST_F(LayerTableTest, AReservationIsGivenBack) {
  {
    auto reservation = table_.Reserve({"a", "", Spec()});
    ASSERT_TRUE(reservation.ok());
    EXPECT_GT(table_.weight_bytes(), 0);
  }
  EXPECT_EQ(table_.weight_bytes(), 0);
}

TEST_F(LayerTableTest, LayersWithTheSameBytesInOtherShapesDoNotShare) {
  LayerSpec wide = Spec();
  wide.attention.head_dim_qk = 2;
  wide.attention.head_dim_v = 3;
  LayerTensors a(Spec()), b(wide);
  for (int t = 0; t < kNumLayerTensors; ++t) {
    const auto tensor = static_cast<LayerTensor>(t);
    if (IsBias(tensor)) continue;
    a.Set(tensor, std::string(ShapeOf(Spec(), tensor).elements() * 4, '\0'));
    b.Set(tensor, std::string(ShapeOf(wide, tensor).elements() * 4, '\0'));
  }
  EXPECT_NE((*Create(table_, "a", a))->weights, (*Create(table_, "b", b))->weights);
}

TEST_F(LayerTableTest, BoundsAreKept) {
  LayerTable small(projections_.get(), {100, 3}, clock_, tenants_);
  const auto refused = small.Reserve({"a", "x", Spec()});
  EXPECT_EQ(ReasonOf(refused.status()), "LAYER_BYTES_EXHAUSTED");
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("expected at most the 100"));
  for (const char* id : {"1", "2", "3"}) ASSERT_TRUE(Create(table_, id, Tensors(Spec())).ok());
  EXPECT_EQ(ReasonOf(Create(table_, "4", Tensors(Spec())).status()), "QUOTA_EXCEEDED");
  EXPECT_TRUE(Create(table_, "1", Tensors(Spec())).ok()) << "it is there already";
  EXPECT_TRUE(Create(table_, "4", Tensors(Spec()), "b").ok()) << "another tenant";
  LayerTable none(nullptr, {100, 3}, clock_, tenants_);
  EXPECT_EQ(none.Reserve({"a", "x", Spec()}).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(LayerTableTest, NamesAreATenantsOwn) {
  ASSERT_TRUE(Create(table_, "x/y-1", Tensors(Spec())).ok());
  EXPECT_EQ(ReasonOf(table_.Find("b", "x/y-1").status()), "LAYER_NOT_FOUND");
  EXPECT_EQ(Create(table_, "x/y-1", Tensors(Spec(), false)).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(table_.List("a", "", 10).size(), 1u);
  EXPECT_TRUE(table_.List("b", "", 10).empty());
  EXPECT_TRUE(table_.List("a", "x/y-1", 10).empty());
  EXPECT_EQ(table_.Reserve({"a", "no blanks", Spec()}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(table_.Reserve({"a", std::string(129, 'x'), Spec()}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(LayerTableTest, WeightsUnpackToWhatWasUploaded) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    LayerSpec cross = Spec(2, dtype);
    cross.context_dim = 7;
    for (const LayerSpec& spec : {Spec(2, dtype), cross}) {
      const LayerTensors tensors = Tensors(spec, dtype != DType::kFloat16);
      const auto weights = *LayerWeights::Pack(*projections_, tensors);
      EXPECT_EQ(weights->Unpack(spec)->Hash(), tensors.Hash());
    }
  }
}

// Projections whose memory can be lost, as a GPU's is with its context.
class LosableProjections final : public ProjectionBackend {
 public:
  class Losable final : public PackedProjection {
   public:
    Losable(const LosableProjections& owner, std::shared_ptr<const PackedProjection> real)
        : owner_(owner), generation_(owner.generation), real_(std::move(real)) {}
    std::int64_t out_features() const override { return real_->out_features(); }
    std::int64_t in_features() const override { return real_->in_features(); }
    std::size_t bytes() const override { return real_->bytes(); }
    absl::Status Unpack(float* weights, float* bias) const override {
      return is_lost() ? absl::UnavailableError("gone") : real_->Unpack(weights, bias);
    }
    bool is_lost() const override { return generation_ != owner_.generation; }

   private:
    const LosableProjections& owner_;
    const int generation_;
    const std::shared_ptr<const PackedProjection> real_;
  };

  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override {
    return std::make_shared<const Losable>(*this, *real_->Pack(in_features, parts));
  }
  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
    return real_->PackedBytes(in_features, out_features);
  }
  absl::Status Project(std::span<const ProjectionTask>) override { return absl::OkStatus(); }

  int generation = 0;

 private:
  std::unique_ptr<ProjectionBackend> real_ = reference::MakeReferenceProjections();
};

TEST_F(LayerTableTest, ALayerThatItsDeviceLostIsGoneAndCanBeCreatedAgain) {
  LosableProjections projections;
  LayerTable table(&projections, {std::int64_t{1} << 20, 2}, clock_, tenants_);
  const LayerTensors tensors = Tensors(Spec());
  ASSERT_TRUE(Create(table, "one", tensors).ok());
  ASSERT_TRUE(Create(table, "two", tensors).ok());
  const std::int64_t bytes = table.weight_bytes();
  ++projections.generation;
  const absl::Status status = table.Find("a", "one").status();
  ASSERT_TRUE(GetErrorDetail(status).has_value()) << status;
  EXPECT_EQ(GetErrorDetail(status)->reason, "LAYER_NOT_FOUND");
  EXPECT_THAT(std::string(status.message()), HasSubstr("was lost"));
  EXPECT_TRUE(table.List("a", "", 10).empty());
  // The same weights are packed anew, and the quota of two has room.
  ASSERT_TRUE(Create(table, "one", tensors).ok());
  ASSERT_TRUE(Create(table, "three", tensors).ok());
  EXPECT_TRUE(table.Find("a", "one").ok());
  EXPECT_EQ(table.weight_bytes(), bytes);
  EXPECT_EQ(table.num_layers(), 2);
}

TEST_F(LayerTableTest, ABackendWithoutProjectionsSaysWhy) {
  LayerTable table(nullptr, {1 << 20, 2, "no library"}, clock_, tenants_);
  const absl::Status status = table.Reserve({"a", "one", Spec()}).status();
  EXPECT_EQ(status,
            absl::UnimplementedError("the server's backend has no projections: no library"));
}

TEST_F(LayerTableTest, ConversionAveragesGroupsAndRefusesWhatDoesNotDivide) {
  const LayerTensors source = Tensors(Spec());
  const LayerTensors pooled = *MeanPoolHeads(source, 2);
  EXPECT_EQ(pooled.spec().attention.num_kv_heads, 2);
  const std::string& from = source.bytes(LayerTensor::kWk);
  const std::string& to = pooled.bytes(LayerTensor::kWk);
  ASSERT_EQ(to.size() * 2, from.size());
  constexpr int kHead = 3 * 6;  // elements of a head's rows of w_k
  for (int i = 0; i < 2 * kHead; ++i) {
    const int first = i / kHead * 2 * kHead + i % kHead;
    const float mean = (LoadElement(from.data(), DType::kFloat32, first) +
                        LoadElement(from.data(), DType::kFloat32, first + kHead)) /
                       2;
    EXPECT_EQ(LoadElement(to.data(), DType::kFloat32, i), mean) << i;
  }
  EXPECT_EQ(pooled.bytes(LayerTensor::kWq), source.bytes(LayerTensor::kWq));
  EXPECT_EQ(pooled.bytes(LayerTensor::kBk).size(), 2u * 3 * 4);
  EXPECT_EQ(MeanPoolHeads(source, 4)->Hash(), source.Hash()) << "the identity";
  for (const int heads : {0, -2, 3, 8}) {
    EXPECT_EQ(MeanPoolHeads(source, heads).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(LayerTableTest, AConversionReservesItsRoomBeforeItUnpacks) {
  LosableProjections projections;
  LayerTable table(&projections, {std::int64_t{1} << 20, 1}, clock_, tenants_);
  ASSERT_TRUE(Create(table, "one", Tensors(Spec())).ok());
  int num_asked = 0;
  const auto count = [&num_asked] {
    ++num_asked;
    return absl::OkStatus();
  };
  EXPECT_EQ(table.Convert("a", "one", "two", 2, count).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(num_asked, 1) << "refused before anything that takes long";
}

TEST_F(LayerTableTest, AConversionThatNobodyWantsAnyMoreEndsWhereverItIs) {
  LosableProjections projections;
  LayerTable table(&projections, {std::int64_t{1} << 20, 10}, clock_, tenants_);
  ASSERT_TRUE(Create(table, "one", Tensors(Spec())).ok());
  const std::int64_t bytes = table.weight_bytes();
  int num_ended = 0;
  for (int end_at = 1;; ++end_at) {
    int num_asked = 0;
    const auto end = [&] {
      return ++num_asked == end_at ? absl::CancelledError("gone") : absl::OkStatus();
    };
    const absl::Status status = table.Convert("a", "one", "two", 2, end).status();
    if (status.ok()) break;
    ++num_ended;
    EXPECT_EQ(status, absl::CancelledError("gone"));
    EXPECT_EQ(table.num_layers(), 1);
    EXPECT_EQ(table.weight_bytes(), bytes) << "its room is given back";
  }
  EXPECT_GT(num_ended, 3) << "before, between its tensors, and before it packs";
  EXPECT_TRUE(table.Find("a", "two").ok());
}

TEST(LayerTensorsTest, HashIsThatOfTheBytesInOrder) {
  // SHA-256 of nothing.
  EXPECT_EQ(Sha256({}).substr(0, 4), "\xe3\xb0\xc4\x42");
  EXPECT_EQ(Sha256({"ab", "c"}), Sha256({"abc"}));
  EXPECT_EQ(Sha256({"abc"}).substr(0, 4), "\xba\x78\x16\xbf");
}

}  // namespace
}  // namespace attention::server
