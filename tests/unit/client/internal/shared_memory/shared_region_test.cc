#include "client/internal/shared_memory/shared_region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "client/internal/shared_memory/extent_allocator.h"
#include "client/internal/shared_memory/region_pool.h"
#include "client/internal/shared_memory/shared_tensor_refs.h"

namespace attention::client::internal {
namespace {

constexpr std::size_t kMegabyte = std::size_t{1} << 20;

TEST(ExtentAllocatorTest, TakesTheBestFitAndGivesTheSamePlaceAgain) {
  ExtentAllocator extents(1024);
  EXPECT_EQ(extents.Allocate(256), 0u);
  EXPECT_EQ(extents.Allocate(64), 256u);
  EXPECT_EQ(extents.Allocate(128), 320u);
  EXPECT_EQ(extents.Allocate(64), 448u);
  extents.Free(0, 256);
  extents.Free(320, 128);
  EXPECT_EQ(extents.Allocate(100), 320u) << "the hole of 128 bytes, not the one of 256";
  EXPECT_EQ(extents.Allocate(600), std::nullopt);
}

TEST(ExtentAllocatorTest, JoinsNeighbours) {
  ExtentAllocator extents(320);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(extents.Allocate(64), i * 64);
  EXPECT_EQ(extents.Allocate(1), std::nullopt);
  for (const std::size_t offset : {64, 192, 128, 0, 256}) extents.Free(offset, 64);
  EXPECT_EQ(extents.used_bytes(), 0u);
  EXPECT_EQ(extents.Allocate(320), 0u);
}

TEST(ExtentAllocatorTest, NoBytesHaveAPlaceAndTooManyHaveNone) {
  ExtentAllocator extents(128);
  EXPECT_NE(extents.Allocate(0), extents.Allocate(0));
  EXPECT_EQ(extents.Allocate(SIZE_MAX), std::nullopt);
  EXPECT_EQ(extents.Allocate(SIZE_MAX - 62), std::nullopt);
}

TEST(ExtentAllocatorTest, ExtentsNeverOverlapWhateverTheOrder) {
  constexpr std::size_t kSize = 64 * 1024;
  ExtentAllocator extents(kSize);
  std::mt19937 random(1);
  std::vector<bool> is_taken(kSize, false);
  std::vector<std::pair<std::size_t, std::size_t>> held;
  for (int i = 0; i < 5000; ++i) {
    if (held.empty() || random() % 2 == 0) {
      const std::size_t bytes = random() % 3000;
      const auto offset = extents.Allocate(bytes);
      if (!offset.has_value()) continue;
      ASSERT_EQ(*offset % ExtentAllocator::kGranularity, 0u);
      ASSERT_LE(*offset + bytes, kSize);
      for (std::size_t at = *offset; at < *offset + bytes; ++at) {
        ASSERT_FALSE(is_taken[at]);
        is_taken[at] = true;
      }
      held.emplace_back(*offset, bytes);
    } else {
      std::swap(held[random() % held.size()], held.back());
      const auto [offset, bytes] = held.back();
      held.pop_back();
      for (std::size_t at = offset; at < offset + bytes; ++at) is_taken[at] = false;
      extents.Free(offset, bytes);
    }
  }
  for (const auto& [offset, bytes] : held) extents.Free(offset, bytes);
  EXPECT_EQ(extents.Allocate(kSize), 0u);
}

// Memory as a server may make it.
int MakeMemory(std::size_t bytes, int seals) {
  const int fd = memfd_create("shared_region_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  EXPECT_TRUE(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

std::shared_ptr<SharedRegion> MakeRegion(
    std::size_t bytes, SharedRegion::Lease lease = {},
    std::shared_ptr<std::atomic<std::size_t>> total_bytes = nullptr) {
  auto region = SharedRegion::Map(MakeMemory(bytes, F_SEAL_SHRINK), bytes, std::move(lease),
                                  std::move(total_bytes));
  EXPECT_TRUE(region.ok()) << region.status();
  return *std::move(region);
}

TEST(SharedRegionTest, MemoryThatCouldEndThisProcessIsRefused) {
  for (const int fd : {MakeMemory(kMegabyte, 0), MakeMemory(kMegabyte / 2, F_SEAL_SHRINK)}) {
    const absl::Status status = SharedRegion::Map(fd, kMegabyte, {}).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(fcntl(fd, F_GETFD), -1) << "the descriptor is taken all the same";
  }
}

TEST(SharedRegionTest, ASlotKeepsTheLease) {
  auto connection = std::make_shared<int>();
  auto region = MakeRegion(kMegabyte, {.id = "id", .connection = connection});
  auto slot = region->Allocate(100);
  EXPECT_FALSE(region->is_idle());
  region.reset();
  EXPECT_GT(connection.use_count(), 1);
  slot.reset();
  EXPECT_EQ(connection.use_count(), 1);
}

TEST(SharedRegionTest, ASlotIsLentAgainWhenItsLastHolderLetsGo) {
  const auto region = MakeRegion(kMegabyte);
  auto slot = region->Allocate(kMegabyte);
  ASSERT_NE(slot, nullptr);
  auto other_holder = slot;
  slot.reset();
  EXPECT_EQ(region->Allocate(1), nullptr);
  other_holder.reset();
  EXPECT_NE(region->Allocate(kMegabyte), nullptr);
}

TEST(SharedRegionTest, AnAbandonedSlotIsNeverLentAgain) {
  const auto region = MakeRegion(kMegabyte);
  auto slot = region->Allocate(kMegabyte / 2);
  slot->Abandon();
  const char* const data = slot->data();
  slot.reset();
  EXPECT_TRUE(region->has_abandoned_slots());
  EXPECT_EQ(region->used_bytes(), kMegabyte / 2);
  const auto other = region->Allocate(kMegabyte / 2);
  EXPECT_NE(other->data(), data);
  EXPECT_EQ(region->Allocate(1), nullptr);
}

TEST(SharedRegionTest, ASlotIsFoundByAnyOfItsBytes) {
  const auto region = MakeRegion(kMegabyte);
  const auto first = region->Allocate(1000);
  const auto second = region->Allocate(1000);
  EXPECT_EQ(region->Find(first->data(), 1000), first);
  EXPECT_EQ(region->Find(second->data() + 500, 500), second);
  EXPECT_EQ(region->Find(second->data() + 500, 501), nullptr);
  EXPECT_EQ(region->Find(first->data(), 2000), nullptr) << "two slots are not one";
  EXPECT_EQ(region->Find(second->data() + 2000, 8), nullptr);
  EXPECT_EQ(region->Find(&region, 8), nullptr);
}

TEST(SharedRegionTest, ASlotKeepsItsRegionMapped) {
  auto region = MakeRegion(kMegabyte);
  const auto slot = region->Allocate(100);
  region.reset();
  std::memset(slot->data(), 1, slot->size());
}

// As large as the pool wants it, with room for `bytes`.
absl::Status Grow(RegionPool& pool, std::size_t bytes, std::size_t target = 0) {
  const absl::StatusOr<std::size_t> size = pool.NextSize(bytes);
  if (size.ok()) pool.Add(MakeRegion(*size, {.target = target, .id = "id"}, pool.counter()));
  return size.status();
}

TEST(RegionPoolTest, GrowsToItsBoundAndTellsWhatIsMapped) {
  RegionPool pool(40 * kMegabyte);
  EXPECT_EQ(pool.AllocateAnywhere(1), nullptr);
  EXPECT_TRUE(Grow(pool, 1).ok());
  EXPECT_EQ(pool.mapped_bytes(), 32 * kMegabyte);
  EXPECT_TRUE(Grow(pool, kMegabyte).ok());
  EXPECT_EQ(pool.mapped_bytes(), 40 * kMegabyte);
  EXPECT_TRUE(absl::IsResourceExhausted(Grow(pool, 1)));
}

TEST(RegionPoolTest, LendsForATargetWhatItsServerHasMade) {
  RegionPool pool(80 * kMegabyte);
  ASSERT_TRUE(Grow(pool, 1, /*target=*/1).ok());
  EXPECT_EQ(pool.Allocate(0, 1), nullptr);
  EXPECT_FALSE(pool.Has(0));
  EXPECT_NE(pool.AllocateAnywhere(1), nullptr);
  EXPECT_NE(pool.Allocate(1, 1), nullptr);
  EXPECT_TRUE(pool.Has(1));
}

TEST(RegionPoolTest, ARegionThatWasTakenOutIsCountedUntilItsLastSlotGoes) {
  RegionPool pool(40 * kMegabyte);
  ASSERT_TRUE(Grow(pool, 1).ok());
  auto abandoned = pool.AllocateAnywhere(100);
  auto held = pool.AllocateAnywhere(100);
  EXPECT_TRUE(pool.TakeAbandoned(0).empty());
  abandoned->Abandon();
  abandoned.reset();
  EXPECT_TRUE(pool.TakeAbandoned(1).empty());
  EXPECT_FALSE(pool.TakeAbandoned(0)[0]->is_usable());
  EXPECT_TRUE(pool.regions().empty());
  EXPECT_EQ(pool.Find(held->data(), 100), nullptr);
  EXPECT_EQ(pool.mapped_bytes(), 32 * kMegabyte);
  held.reset();
  EXPECT_EQ(pool.mapped_bytes(), 0u);
}

TEST(RegionPoolTest, ATargetsRegionsAreTakenOutTogether) {
  RegionPool pool(80 * kMegabyte);
  ASSERT_TRUE(Grow(pool, 1, 0).ok());
  ASSERT_TRUE(Grow(pool, 1, 1).ok());
  EXPECT_EQ(pool.TakeAll(0).size(), 1u);
  ASSERT_EQ(pool.regions().size(), 1u);
  EXPECT_EQ(pool.regions()[0]->target(), 1u);
}

class SharedPlacesTest : public testing::Test {
 protected:
  static TensorView Floats(const char* data, std::int64_t count) {
    return TensorView(data, DType::kFloat32, {count});
  }

  const std::shared_ptr<SharedRegion> region_ = MakeRegion(kMegabyte);
  const std::shared_ptr<SharedSlot> a_ = region_->Allocate(4096);
  const std::shared_ptr<SharedSlot> b_ = region_->Allocate(4096);
  const std::shared_ptr<SharedSlot> out_ = region_->Allocate(4096);
  const SharedTensorRefs refs_ =
      SharedTensorRefs({{b_, "id"}, {a_, "id"}}, {out_, "out"}, {400, 0, 256});
};

TEST_F(SharedPlacesTest, ATensorThatLiesWithinASlotHasAPlace) {
  EXPECT_EQ(refs_.RefTo(Floats(a_->data(), 1024))->offset(),
            static_cast<std::int64_t>(a_->offset()));
  const auto ref = refs_.RefTo(Floats(b_->data() + 64, 100));
  ASSERT_TRUE(ref.has_value());
  EXPECT_EQ(ref->offset(), static_cast<std::int64_t>(b_->offset() + 64));
  EXPECT_EQ(ref->region_id(), "id");
  EXPECT_FALSE(refs_.RefTo(Floats(b_->data() + 64, 1024)).has_value()) << "ends behind it";
  EXPECT_FALSE(refs_.RefTo(Floats(a_->data(), 4)).has_value()) << "too small to be worth it";
  const std::vector<float> elsewhere(100);
  EXPECT_FALSE(refs_.RefTo(TensorView(elsewhere, {100})).has_value());
}

TEST_F(SharedPlacesTest, OutputsLieBehindEachOther) {
  EXPECT_EQ(SharedTensorRefs::SlotBytes({400, 0, 256}), 448u + 256u);
  EXPECT_EQ(refs_.RefToOutput(0)->offset(), static_cast<std::int64_t>(out_->offset()));
  EXPECT_FALSE(refs_.RefToOutput(1).has_value());
  EXPECT_EQ(refs_.RefToOutput(2)->offset(), static_cast<std::int64_t>(out_->offset() + 448));
  EXPECT_FALSE(refs_.RefToOutput(3).has_value());
}

TEST_F(SharedPlacesTest, AResultIsReadWhereItWasAskedForAndNowhereElse) {
  const auto result = refs_.Read(*refs_.RefToOutput(2), DType::kFloat32, {64});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->bytes().data(), out_->data() + 448);
  v1::SharedMemoryRef wrong = *refs_.RefToOutput(2);
  EXPECT_FALSE(refs_.Read(wrong, DType::kFloat32, {65}).ok());
  EXPECT_FALSE(refs_.Read(wrong, DType::kFloat32, {-1}).ok());
  wrong.set_offset(wrong.offset() + 4);
  EXPECT_FALSE(refs_.Read(wrong, DType::kFloat32, {63}).ok());
  wrong = *refs_.RefToOutput(0);
  wrong.set_region_id("another");
  EXPECT_TRUE(absl::IsInternal(refs_.Read(wrong, DType::kFloat32, {100}).status()));
}

}  // namespace
}  // namespace attention::client::internal
