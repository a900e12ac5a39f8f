// The benchmark of the CUDA kernels on a host that plays the device: not how fast, but that its
// cases run, that its figures are of right results, and that it says so where they are not.
#include <gmock/gmock.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "kernels/reference/reference_attention.h"
#include "tests/benchmark/cuda/bench_main.h"
#include "tests/benchmark/cuda/measure.h"
#include "tests/benchmark/cuda/recording_device.h"
#include "tests/benchmark/cuda/report.h"

namespace attention::bench {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr MeasureOptions kBrief = {.rounds = 2, .turn_seconds = 0, .rows_per_part = 4};

Bench MakeBench(std::shared_ptr<cuda::Device> device,
                std::span<const AttentionBenchPeer> peers = {}) {
  Bench bench;
  bench.meter = device->MakeMeter();
  bench.device = std::move(device);
  bench.peers = peers;
  bench.options = kBrief;
  return bench;
}

Group OneSmallPrefill() { return SmallGroups().front(); }

CaseResult MeasureOne(const Bench& bench, const Group& group) {
  auto results = MeasureGroup(bench, group);
  EXPECT_TRUE(results.ok()) << results.status();
  return results.ok() ? results->front() : CaseResult{.outcomes = {Outcome{}}};
}

// --- Peers as C functions, for the host's memory ---

struct Prepared {
  AttentionBenchPart part;
  std::vector<char> o;
};
std::map<std::int64_t, Prepared> prepared;  // by token
float peer_factor = 1;                      // on its outputs: not 1 is wrong

int PreparePart(std::int64_t token, const AttentionBenchCase* bench_case, char* text,
                std::int64_t text_bytes) {
  std::snprintf(text, text_bytes, "float64");
  if (bench_case->num_parts != 1) return kAttentionBenchAbsent;
  prepared[token].part = bench_case->parts[0];
  return kAttentionBenchOk;
}

int LaunchReference(std::int64_t token) {
  auto& [part, out] = prepared.at(token);
  const Part shape = {.num_q_heads = static_cast<int>(part.num_q_heads),
                      .num_kv_heads = static_cast<int>(part.num_kv_heads),
                      .q_len = part.q_len,
                      .kv_len = part.kv_len,
                      .head_dim = static_cast<int>(part.head_dim),
                      .is_causal = part.is_causal != 0,
                      .window_left = part.window_left};
  const std::int64_t q_count = part.q_len * part.num_q_heads * part.head_dim;
  const std::int64_t kv_count = part.kv_len * part.num_kv_heads * part.head_dim;
  out.resize(part.batch_size * q_count * 2);
  for (std::int64_t i = 0; i < part.batch_size; ++i) {
    AttentionTask task = shape.Task();
    const auto rows = [&](void* data, std::int64_t count, std::int64_t heads) {
      return DenseRows(static_cast<const void*>(static_cast<char*>(data) + i * count * 2),
                       DType::kBFloat16, heads, part.head_dim);
    };
    task.q = rows(part.q, q_count, part.num_q_heads);
    task.k = rows(part.k, kv_count, part.num_kv_heads);
    task.v = rows(part.v, kv_count, part.num_kv_heads);
    const auto result = reference::ReferenceAttention(task);
    for (std::int64_t j = 0; j < q_count; ++j) {
      StoreElement(out.data(), DType::kBFloat16, i * q_count + j,
                   static_cast<float>(result.o[j]) * peer_factor);
    }
  }
  return kAttentionBenchOk;
}

int CopyOutput(std::int64_t token, std::int64_t, void* o) {
  std::memcpy(o, prepared.at(token).o.data(), prepared.at(token).o.size());
  return kAttentionBenchOk;
}

void Forget(std::int64_t token) { prepared.erase(token); }

int RefuseCase(std::int64_t, const AttentionBenchCase*, char* text, std::int64_t text_bytes) {
  std::snprintf(text, text_bytes, "no kernel for this head dim");
  return kAttentionBenchFailed;
}

constexpr AttentionBenchPeer kReferencePeer = {"reference", PreparePart, LaunchReference,
                                               CopyOutput, Forget};
constexpr AttentionBenchPeer kRefusingPeer = {"refusing", RefuseCase, LaunchReference, CopyOutput,
                                              Forget};

// Changes an element of each result that it gives to the host.
class BrokenDevice final : public RecordingDevice {
 public:
  using RecordingDevice::RecordingDevice;
  absl::Status CopyToHost(cuda::Stream stream, void* host, const void* device,
                          std::size_t bytes) override {
    absl::Status status = RecordingDevice::CopyToHost(stream, host, device, bytes);
    if (status.ok()) status = Synchronize();
    if (bytes > 0) static_cast<char*>(host)[1] ^= 0x40;
    return status;
  }
};

TEST(CudaBenchTest, EveryKindOfCaseHasAFigureAndIsRight) {
  const Bench bench = MakeBench(*OpenBenchDevice(0));
  for (const Group& group : SmallGroups()) {
    auto results = MeasureGroup(bench, group);
    ASSERT_TRUE(results.ok()) << results.status();
    ASSERT_EQ(results->size(), group.size());
    for (const CaseResult& result : *results) {
      SCOPED_TRACE(result.bench_case.name);
      EXPECT_EQ(result.ours().verdict, Verdict::kRight) << result.ours().error;
      EXPECT_GT(result.ours().seconds, 0);
      EXPECT_LE(result.ours().least_seconds, result.ours().most_seconds);
      EXPECT_GT(result.work.flops, 0);
      EXPECT_EQ(result.beside_seconds > 0, !result.bench_case.beside.empty());
      EXPECT_THAT(RowLine(result), StartsWith("row|measured|" + result.bench_case.name));
    }
  }
}

TEST(CudaBenchTest, AMixedBatchIsHeldAgainstTheSumOfItsParts) {
  auto results = MeasureGroup(MakeBench(*OpenBenchDevice(0)), SmallGroups()[2]);
  ASSERT_TRUE(results.ok()) << results.status();
  const std::vector<CaseResult>& cases = *results;
  EXPECT_DOUBLE_EQ(cases[0].beside_seconds, cases[1].best_seconds() + cases[2].best_seconds());
  EXPECT_DOUBLE_EQ(cases[0].work.flops, cases[1].work.flops + cases[2].work.flops);
}

TEST(CudaBenchTest, AWrongKernelGetsNoFigure) {
  const auto broken = std::make_shared<BrokenDevice>(*OpenBenchDevice(0));
  const CaseResult result = MeasureOne(MakeBench(broken), OneSmallPrefill());
  EXPECT_EQ(result.ours().verdict, Verdict::kWrong);
  EXPECT_EQ(result.ours().seconds, 0);
  EXPECT_THAT(RowLine(result), StartsWith("row|FAILED|full|wrong|- TFLOP/s"));
}

TEST(CudaBenchTest, PeersTakeTurnsWithTheKernelsOnTheSameTensors) {
  peer_factor = 1;
  const AttentionBenchPeer peers[] = {kReferencePeer, kRefusingPeer};
  const CaseResult result = MeasureOne(MakeBench(*OpenBenchDevice(0), peers), OneSmallPrefill());
  ASSERT_EQ(result.outcomes.size(), 3);
  EXPECT_EQ(result.outcomes[1].verdict, Verdict::kRight) << result.outcomes[1].error;
  EXPECT_EQ(result.outcomes[1].text, "float64");
  EXPECT_EQ(result.best_peer(), &result.outcomes[1]);
  EXPECT_EQ(result.outcomes[2].verdict, Verdict::kFailed);
  EXPECT_EQ(result.outcomes[2].text, "no kernel for this head dim");
  EXPECT_THAT(RowLine(result), HasSubstr("reference "));
  EXPECT_THAT(RowLine(result), HasSubstr("refusing failed"));
  EXPECT_TRUE(prepared.empty()) << "a peer was not told to let go";
}

TEST(CudaBenchTest, AWrongPeerGetsNoFigure) {
  peer_factor = 1.05f;
  const AttentionBenchPeer peers[] = {kReferencePeer};
  const CaseResult result = MeasureOne(MakeBench(*OpenBenchDevice(0), peers), OneSmallPrefill());
  peer_factor = 1;
  EXPECT_EQ(result.outcomes[1].verdict, Verdict::kWrong);
  EXPECT_EQ(result.best_peer(), nullptr);
  EXPECT_THAT(RowLine(result), HasSubstr("FAILED"));
  EXPECT_THAT(RowLine(result), HasSubstr("reference wrong"));
}

TEST(CudaBenchTest, PeersAreNotAskedForCachesOfAnotherType) {
  const AttentionBenchPeer peers[] = {kReferencePeer};
  auto results = MeasureGroup(MakeBench(*OpenBenchDevice(0), peers), SmallGroups()[2]);
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ(results->back().outcomes.size(), 1) << results->back().bench_case.name;
  EXPECT_EQ((*results)[0].outcomes[1].verdict, Verdict::kAbsent);  // has two parts
}

// A row whose newest key is left out is what a mask that is off by one gives.
TEST(CudaBenchTest, RowsShowAMaskThatIsOffByOne) {
  const auto device = *OpenBenchDevice(0);
  const Case bench_case = OneSmallPrefill().front();
  const auto tensors = MakeCaseTensors(bench_case, *device);
  ASSERT_TRUE(tensors.ok());
  const auto rows = ExpectRows(*tensors, 12);
  const PartTensors& part = *tensors->front();
  const auto read = [&](std::int64_t left_out) {
    return [&, left_out](const RowRef& ref, std::vector<float>* row) {
      AttentionTask task = part.part().Task();
      task.q = DenseRows(static_cast<const void*>(part.Query(0)), DType::kBFloat16, 4, 64);
      task.k = part.Keys(0, 0);
      task.v = part.Values(0, 0);
      task.kv_len -= left_out;
      auto result = reference::BeginReference(task);
      reference::AddReferenceRow(task, ref.query, ref.head, &result);
      for (std::size_t i = 0; i < row->size(); ++i) {
        (*row)[i] = static_cast<float>(result.o[(ref.query * 4 + ref.head) * 64 + i]);
      }
      return absl::OkStatus();
    };
  };
  EXPECT_LT(*WorstError(rows, read(0)), 0.01);
  EXPECT_GT(*WorstError(rows, read(1)), 1);
}

TEST(CudaBenchTest, ANotANumberIsNeverRight) {
  const std::vector<ExpectedRow> rows = {{.ref = {}, .exact = {1.0}, .bound = {0.1}}};
  const auto worst = WorstError(rows, [](const RowRef&, std::vector<float>* row) {
    row->assign(1, NAN);
    return absl::OkStatus();
  });
  EXPECT_TRUE(std::isinf(*worst));
}

TEST(CudaBenchTest, WhatSequencesShareIsCountedOnce) {
  const Part part = {.batch_size = 10, .kv_len = 1000, .shared_len = 900};
  Part alone = part;
  alone.shared_len = 0;
  const double row_bytes = 2.0 * 8 * 128 * 2;
  EXPECT_DOUBLE_EQ(
      WorkOf({.name = "", .parts = {alone}}).bytes - WorkOf({.name = "", .parts = {part}}).bytes,
      9 * 900 * row_bytes);
}

TEST(CudaBenchTest, TheRooflineIsWhatTakesLonger) {
  const Ceilings ceilings = {.matrix_flops = 100, .copy_bytes = 10};
  EXPECT_TRUE(RooflineOf({.flops = 1000, .bytes = 10}, ceilings).is_matrix);
  EXPECT_DOUBLE_EQ(RooflineOf({.flops = 1000, .bytes = 10}, ceilings).seconds, 10);
  EXPECT_FALSE(RooflineOf({.flops = 100, .bytes = 50}, ceilings).is_matrix);
  EXPECT_DOUBLE_EQ(RooflineOf({.flops = 100, .bytes = 50}, ceilings).seconds, 5);
  EXPECT_EQ(RooflineOf({.flops = 100, .bytes = 50}, {}).seconds, 0);
}

TEST(CudaBenchTest, CasesAreNamedOnceAndHeldAgainstCasesOfTheirGroup) {
  std::map<std::string, int> names;
  for (const Group& group : AllGroups()) {
    std::map<std::string, int> in_group;
    for (const Case& bench_case : group) {
      ++names[bench_case.name];
      ++in_group[bench_case.name];
    }
    for (const Case& bench_case : group) {
      for (const std::string& other : bench_case.beside) EXPECT_EQ(in_group[other], 1) << other;
    }
  }
  for (const auto& [name, count] : names) EXPECT_EQ(count, 1) << name;
}

TEST(CudaBenchTest, TheProgramWritesWhatItFound) {
  const std::string path = ::testing::TempDir() + "/cuda_bench.json";
  const std::string json = "--json=" + path;
  const char* arguments[] = {"bench",      "--small",          "--filter=shared",
                             "--rounds=1", "--turn-seconds=0", "--note=skipped: nobody: a test",
                             json.c_str()};
  ASSERT_EQ(AttentionBenchMain(7, arguments, nullptr, 0), 0);
  std::ifstream file(path);
  const auto report = nlohmann::json::parse(file);
  EXPECT_EQ(report["notes"][0], "skipped: nobody: a test");
  ASSERT_EQ(report["records"].size(), 1);
  EXPECT_EQ(report["records"][0]["name"], "shared");
  EXPECT_EQ(report["records"][0]["outcomes"][0]["verdict"], "right");
  EXPECT_GT(report["records"][0]["outcomes"][0]["seconds"], 0);
}

TEST(CudaBenchTest, TheProgramFailsOnAWrongResultAlone) {
  const char* arguments[] = {"bench", "--small", "--filter=full", "--rounds=1", "--turn-seconds=0"};
  peer_factor = 2;
  EXPECT_EQ(AttentionBenchMain(5, arguments, &kReferencePeer, 1), 1);
  peer_factor = 1;
  EXPECT_EQ(AttentionBenchMain(5, arguments, &kRefusingPeer, 1), 0);
}

}  // namespace
}  // namespace attention::bench
