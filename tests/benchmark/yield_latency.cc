// attention-yield-latency: how long a run takes to stop after it was asked to. One long causal
// prompt runs step by step; another thread sets its flag after random times. Latencies are those of
// the clock on the wall and of the calling thread's processor time: on a machine that others use,
// the second leaves out what the thread spent waiting for its core.
#include <pthread.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "tests/benchmark/bench_case.h"

namespace attention::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPromptMicroseconds = 10;

double Microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

// The processor time of the thread that made it, for any thread to read.
class ThreadClock {
 public:
  ThreadClock() { pthread_getcpuclockid(pthread_self(), &clock_); }
  double Microseconds() const {
    timespec now{};
    clock_gettime(clock_, &now);
    return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
  }

 private:
  clockid_t clock_{};
};

// Sets a flag when a moment has come, from a thread of its own, which sleeps until shortly before.
class FlagSetter {
 public:
  FlagSetter() : thread_([this] { Loop(); }) {}
  ~FlagSetter() {
    is_over_ = true;
    thread_.join();
  }

  const std::atomic<bool>& flag() const { return flag_; }

  void SetIn(Clock::duration time) {
    flag_ = false;
    due_ = (Clock::now() + time).time_since_epoch().count();
    has_judged_ = false;  // last: the setter looks at the others only then
  }
  // True when the setter kept its core between taking the time and setting the flag.
  bool IsPrompt() const {
    while (!has_judged_) std::this_thread::yield();
    return is_prompt_;
  }
  // The time since the flag was set last.
  double WallMicroseconds() const {
    return Microseconds(Clock::now() - Clock::time_point(Clock::duration(set_at_.load())));
  }
  double ProcessorMicroseconds() const { return runner_.Microseconds() - runner_set_at_; }

 private:
  void Loop() {
    while (!is_over_) {
      const Clock::time_point due{Clock::duration(due_.load())};
      if (has_judged_ || due_ == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
        continue;
      }
      std::this_thread::sleep_until(due);
      runner_set_at_ = runner_.Microseconds();
      set_at_ = Clock::now().time_since_epoch().count();
      flag_ = true;
      is_prompt_ = WallMicroseconds() < kPromptMicroseconds;
      has_judged_ = true;
    }
  }

  const ThreadClock runner_;
  std::atomic<double> runner_set_at_{0};
  std::atomic<bool> flag_{false}, has_judged_{false}, is_prompt_{false}, is_over_{false};
  std::atomic<Clock::rep> due_{0}, set_at_{0};
  std::thread thread_;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

void Print(const char* name, std::vector<double> latencies) {
  std::sort(latencies.begin(), latencies.end());
  const auto quantile = [&](double share) {
    return latencies[static_cast<std::size_t>(share * static_cast<double>(latencies.size() - 1))];
  };
  std::printf("  %-9s p50 %.0f, p90 %.0f, p99 %.0f, p99.9 %.0f, max %.0f us\n", name, quantile(0.5),
              quantile(0.9), quantile(0.99), quantile(0.999), latencies.back());
}

// Runs a plan until its keys and values are packed, and drops it: the next plan finds the workspace
// with its memory mapped. A fault of a huge page that the host of a virtual machine has never
// backed took 14 ms.
void WarmUp(AttentionBackend& backend, const std::vector<AttentionTask>& tasks) {
  auto plan = backend.Plan(tasks);
  Check(plan.status());
  const std::atomic<bool> should_yield{true};
  while ((*plan)->progress().flops_done == 0) Check(backend.Run(**plan, &should_yield).status());
}

void Measure(DType dtype, std::int64_t tokens, int threads, double seconds) {
  auto backend = cpu::MakeCpuBackend({.num_threads = threads});
  Check(backend.status());
  BenchCase bench_case({"L", 1, 32, 8, tokens, tokens, 128, true}, dtype, **backend);
  WarmUp(**backend, bench_case.tasks());
  auto plan = (*backend)->Plan(bench_case.tasks());
  Check(plan.status());
  FlagSetter setter;
  std::mt19937 random(1);
  std::vector<double> wall, processor;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  RunState state = RunState::kYielded;
  while (state == RunState::kYielded && Clock::now() < end) {
    setter.SetIn(std::chrono::microseconds(200 + random() % 3000));
    const auto answer = (*backend)->Run(**plan, &setter.flag());
    Check(answer.status());
    state = *answer;
    if (state == RunState::kYielded) {
      const double wall_time = setter.WallMicroseconds();
      const double processor_time = setter.ProcessorMicroseconds();
      if (!setter.IsPrompt()) continue;
      wall.push_back(wall_time);
      processor.push_back(processor_time);
    }
  }
  if (wall.empty()) return Check(absl::InternalError("the run never yielded"));
  const PlanProgress progress = (*plan)->progress();
  std::printf("%s, %d threads, %zu yields, %.1f %% of the prompt, %.1f GFLOP/s\n",
              std::string(DTypeName(dtype)).c_str(), threads, wall.size(),
              100 * progress.flops_done / progress.flops, progress.flops_done / seconds / 1e9);
  Print("wall", wall);
  Print("processor", processor);
}

int Main(int argc, char** argv) {
  CLI::App app("How long a run takes to stop after it was asked to");
  std::int64_t tokens = 32768;
  int threads = 2;
  double seconds = 10;
  app.add_option("--tokens", tokens, "length of the prompt")->check(CLI::PositiveNumber);
  app.add_option("--threads", threads)->check(CLI::PositiveNumber);
  app.add_option("--seconds", seconds, "for each type")->check(CLI::PositiveNumber);
  app.set_version_flag("--version", "attention-yield-latency " ATTENTION_VERSION);
  CLI11_PARSE(app, argc, argv);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) Measure(dtype, tokens, threads, seconds);
  return 0;
}

}  // namespace
}  // namespace attention::bench

int main(int argc, char** argv) { return attention::bench::Main(argc, argv); }
