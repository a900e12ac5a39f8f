#include "client/loadgen/options.h"

#include <gmock/gmock.h>

#include <thread>

#include "absl/strings/str_split.h"

namespace attention::loadgen {
namespace {

using ::testing::HasSubstr;

ParsedOptions Parse(const std::string& flags) {
  return ParseOptions(absl::StrSplit(flags, ' ', absl::SkipEmpty()));
}

Options ParseOk(const std::string& flags) {
  const ParsedOptions parsed = Parse("--target localhost:1 " + flags);
  EXPECT_TRUE(parsed.options.has_value()) << parsed.message;
  return parsed.options.value_or(Options());
}

std::string Mistake(const std::string& flags) {
  const ParsedOptions parsed = Parse("--target localhost:1 " + flags);
  EXPECT_FALSE(parsed.options.has_value());
  EXPECT_EQ(parsed.exit_code, 2);
  return parsed.message;
}

TEST(OptionsTest, DefaultsAreAClosedLoopOfTenSeconds) {
  const Options options = ParseOk("");
  EXPECT_EQ(options.workload, WorkloadKind::kAttend);
  EXPECT_EQ(options.mode, LoopMode::kClosed);
  EXPECT_EQ(options.concurrency, 1);
  EXPECT_EQ(options.warmup, absl::Seconds(2));
  EXPECT_EQ(options.duration, absl::Seconds(10));
  EXPECT_FALSE(options.requests.has_value());
  EXPECT_FALSE(options.connection.tenant.has_value());
  EXPECT_FALSE(options.connection.tls.has_value());
  EXPECT_GE(options.threads, 1);
}

TEST(OptionsTest, ReadsEveryFlag) {
  const Options options = ParseOk(
      "--workload decode --mode open --rate 250.5 --arrivals constant --max-in-flight 32 "
      "--threads 3 --duration 1.5m --warmup 500ms --requests 1000 --num-q-heads 16 "
      "--num-kv-heads 4 --head-dim-qk 128 --head-dim-v 64 --dtype bfloat16 --kv-dtype int8 "
      "--no-causal "
      "--window 9 "
      "--context 99 --decode-tokens 77 --sessions 12 --layers 5 --streams 6 --seed 42 --timeout 3s "
      "--connect-timeout 4s --tenant t --tls-ca ca.pem --token-file token --channels 2 "
      "--shared-memory off --verify 0.25 "
      "--allow-refused --json f.json --quiet --progress");
  EXPECT_EQ(options.workload, WorkloadKind::kDecode);
  EXPECT_EQ(options.mode, LoopMode::kOpen);
  EXPECT_EQ(options.rate, 250.5);
  EXPECT_EQ(options.arrivals, Arrivals::kConstant);
  EXPECT_EQ(options.max_in_flight, 32);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.duration, absl::Seconds(90));
  EXPECT_EQ(options.warmup, absl::Milliseconds(500));
  EXPECT_EQ(options.requests, 1000);
  EXPECT_EQ(options.shape.q_len, 1);
  EXPECT_EQ(options.shape.num_q_heads, 16);
  EXPECT_EQ(options.shape.num_kv_heads, 4);
  EXPECT_EQ(options.shape.head_dim_qk, 128);
  EXPECT_EQ(options.shape.head_dim_v, 64);
  EXPECT_EQ(options.shape.dtype, DType::kBFloat16);
  EXPECT_EQ(options.shape.kv_dtype, DType::kInt8);
  EXPECT_FALSE(options.shape.is_causal);
  EXPECT_EQ(options.shape.window, 9);
  EXPECT_EQ(options.context, 99);
  EXPECT_EQ(options.decode_tokens, 77);
  EXPECT_EQ(options.sessions, 12);
  EXPECT_EQ(options.layers, 5);
  EXPECT_EQ(options.streams, 6);
  EXPECT_EQ(options.seed, 42u);
  EXPECT_EQ(options.timeout, absl::Seconds(3));
  EXPECT_EQ(options.connect_timeout, absl::Seconds(4));
  EXPECT_EQ(options.connection.tenant, "t");
  EXPECT_EQ(options.connection.tls.value().ca_file, "ca.pem");
  EXPECT_EQ(options.connection.token.file, "token");
  EXPECT_EQ(options.channels, 2);
  EXPECT_EQ(options.shared_memory, SharedMemory::kOff);
  EXPECT_EQ(options.verify_fraction, 0.25);
  EXPECT_TRUE(options.allow_refused);
  EXPECT_EQ(options.json_path, "f.json");
  EXPECT_TRUE(options.is_quiet);
  EXPECT_TRUE(options.force_progress);
}

TEST(OptionsTest, SilentFlagsFollowOthers) {
  const Options options = ParseOk("--q-len 7 --num-q-heads 6 --head-dim-qk 32 --concurrency 9");
  EXPECT_EQ(options.shape.kv_len, 7);
  EXPECT_EQ(options.shape.num_kv_heads, 6);
  EXPECT_EQ(options.shape.head_dim_v, 32);
  EXPECT_EQ(options.sessions, 9);
  EXPECT_EQ(ParseOk("--requests 5").duration, std::nullopt);
}

TEST(OptionsTest, SeveralTargets) {
  EXPECT_THAT(ParseOk("--target b:2,c:3").targets,
              ::testing::ElementsAre("localhost:1", "b:2", "c:3"));
}

TEST(OptionsTest, HelpIsNoMistake) {
  const ParsedOptions parsed = Parse("--help");
  EXPECT_FALSE(parsed.options.has_value());
  EXPECT_EQ(parsed.exit_code, 0);
  EXPECT_THAT(parsed.message, HasSubstr("--max-in-flight"));
}

TEST(OptionsTest, VersionIsNoMistake) {
  const ParsedOptions parsed = Parse("--version");
  EXPECT_FALSE(parsed.options.has_value());
  EXPECT_EQ(parsed.exit_code, 0);
  EXPECT_THAT(parsed.message, ::testing::MatchesRegex("attention-loadgen [0-9]+\\..*\n"));
}

TEST(OptionsTest, TargetIsRequired) {
  EXPECT_THAT(Parse("").message, HasSubstr("--target is missing, expected host:port"));
}

struct MistakeCase {
  std::string flags;
  std::string message;
};

TEST(OptionsTest, MistakesNameFlagValueAndExpectation) {
  const std::vector<MistakeCase> cases = {
      {"--workload train", "--workload is \"train\", expected attend|decode|mixed|prefill"},
      {"--dtype int8", "--dtype is \"int8\", expected bfloat16|float16|float32"},
      {"--workload decode --kv-dtype int4",
       "--kv-dtype is \"int4\", expected bfloat16|float16|float32|float8_e4m3|int8"},
      {"--kv-dtype int8", "--kv-dtype applies only with --workload prefill, decode or mixed"},
      {"--duration soon", "--duration is \"soon\", expected a number and a unit"},
      {"--duration 5",
       "--duration is \"5\", expected a number and a unit (ns, us, ms, s, m, h), such as 10s"},
      {"--warmup 1h2s", "--warmup is \"1h2s\", expected a number and a unit"},
      {"--duration 0", "--duration is 0, expected above 0"},
      {"--warmup -1s", "--warmup is -1s, expected 0 or above"},
      {"--timeout 0", "--timeout is 0, expected above 0"},
      {"--requests 0", "--requests is 0, expected 1 to"},
      {"--concurrency 0", "--concurrency is 0, expected 1 to 100000"},
      {"--mode open", "--mode open needs --rate"},
      {"--mode open --rate 0", "--rate is 0, expected above 0"},
      {"--mode open --rate 5 --concurrency 2", "--concurrency applies only with --mode closed"},
      {"--rate 5", "--rate applies only with --mode open"},
      {"--max-in-flight 5", "--max-in-flight applies only with --mode open"},
      {"--num-q-heads 8 --num-kv-heads 3",
       "--num-q-heads is 8, expected a multiple of --num-kv-heads (3)"},
      {"--head-dim-qk 577", "--head-dim-qk is 577, expected 1 to 576"},
      {"--q-len 0", "--q-len is 0, expected 1 to"},
      {"--q-len 1000000 --num-q-heads 64", "bytes, expected at most 2147483647"},
      {"--context 5", "--context applies only with --workload decode or mixed"},
      {"--sessions 5", "--sessions applies only with --workload prefill, decode or mixed"},
      {"--workload decode --q-len 2",
       "--q-len applies only with --workload attend, prefill or mixed"},
      {"--workload prefill --kv-len 2", "--kv-len applies only with --workload attend or mixed"},
      {"--streams 2", "--streams applies only with --workload prefill, decode or mixed"},
      {"--workload decode --streams -1", "--streams is -1, expected 0 to 100000"},
      {"--workload decode --streams 1 --target b:2",
       "--target names 2 servers, expected one with --streams"},
      {"--workload mixed --concurrency 2", "--sessions is 2, expected 3 to"},
      {"--workload decode --concurrency 4 --sessions 2",
       "--sessions is 2, expected at least --concurrency (4)"},
      {"--metadata x", "--metadata is \"x\", expected KEY=VALUE"},
      {"--verify 1.5", "--verify is 1.5, expected 0 to 1"},
      {"--channels 65", "--channels is 65, expected 1 to 64"},
      {"--concurrency many", "--concurrency"},
      {"--no-such-flag", "--no-such-flag"},
  };
  for (const MistakeCase& mistake : cases) {
    EXPECT_THAT(Mistake(mistake.flags), HasSubstr(mistake.message)) << mistake.flags;
  }
}

TEST(ParseDurationTextTest, TakesANumberWithOneUnit) {
  EXPECT_EQ(ParseDurationText("1.5s"), absl::Milliseconds(1500));
  EXPECT_EQ(ParseDurationText("90m"), absl::Minutes(90));
  EXPECT_EQ(ParseDurationText("250ms"), absl::Milliseconds(250));
  EXPECT_EQ(ParseDurationText("0"), absl::ZeroDuration());
  EXPECT_EQ(ParseDurationText("5"), std::nullopt);
  EXPECT_EQ(ParseDurationText("1h2s"), std::nullopt);
  EXPECT_EQ(ParseDurationText(""), std::nullopt);
  EXPECT_EQ(ParseDurationText("inf"), std::nullopt);
  EXPECT_EQ(ParseDurationText("nan"), std::nullopt);
  EXPECT_EQ(ParseDurationText("10 parsecs"), std::nullopt);
}

}  // namespace
}  // namespace attention::loadgen
