#include "tests/benchmark/transport/studies.h"

#include <cstdio>
#include <memory>
#include <utility>

#include "tests/benchmark/transport/echo_contender.h"

namespace attention::bench {
namespace {

struct Exchange {
  std::string name;
  bool is_stream;
  std::size_t request_bytes, answer_bytes;
};

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;

// "layer" is one step of one layer of a Llama-3-8B-like model in bfloat16 (32 query and 8 KV heads
// of 128): q, k and v in, output out; "layer x64" is a batch of 64 of them.
const std::vector<Exchange>& Exchanges() {
  static const auto* all = new std::vector<Exchange>{
      {"1KiB", false, kKiB, kKiB},
      {"64KiB", false, 64 * kKiB, 64 * kKiB},
      {"1MiB", false, kMiB, kMiB},
      {"16MiB", false, 16 * kMiB, 16 * kMiB},
      {"layer", true, 12288, 8192},
      {"layer-x64", true, 64 * 12288, 64 * 8192},
      {"16MiB-stream", true, 16 * kMiB, 16 * kMiB},
  };
  return *all;
}

struct Entrant {
  std::string name;
  std::unique_ptr<EchoProcess> process;
};

Contender MakeContender(const Exchange& exchange, const Entrant& entrant, bool is_unix) {
  const std::size_t request_bytes = exchange.request_bytes, answer_bytes = exchange.answer_bytes;
  return {.name = entrant.name,
          .caller = is_unix ? entrant.process->unix_socket() : entrant.process->tcp(),
          .server = &entrant.process->process(),
          .make_requests = [=] { return MakeEchoRequests(request_bytes, answer_bytes); },
          .load = {.method = exchange.is_stream ? kStreamEcho : kUnaryEcho,
                   .is_stream = exchange.is_stream,
                   .min_answer_bytes = answer_bytes}};
}

// All exchanges over both transports; figures are divided by those of the first entrant.
std::vector<Figures> RunStudy(const std::vector<Entrant>& entrants, const StudyOptions& options) {
  std::vector<Figures> all;
  PrintHeader();
  for (const Exchange& exchange : Exchanges()) {
    if (options.is_quick && exchange.request_bytes > kMiB) continue;
    for (const bool is_unix : {false, true}) {
      const std::string name = exchange.name + (is_unix ? "/unix" : "/tcp");
      if (name.find(options.filter) == std::string::npos) continue;
      std::vector<Contender> contenders;
      for (const Entrant& entrant : entrants) {
        contenders.push_back(MakeContender(exchange, entrant, is_unix));
        if (contenders.size() > 1) contenders.back().reference = contenders.front().name;
      }
      const std::vector<Figures> figures = RunContest(name, contenders, options.contest);
      Print(figures);
      all.insert(all.end(), figures.begin(), figures.end());
    }
  }
  return all;
}

}  // namespace

ChannelSettings ChosenSettings() {
  return {.socket_buffer_bytes = 1 << 20, .max_frame_bytes = 16777215};
}

std::vector<Figures> StudyApis(const StudyOptions& options) {
  const TemporaryFolder folder;
  std::vector<Entrant> entrants;
  const auto add = [&](const std::string& name, EchoSettings settings) {
    settings.channel = ChosenSettings();
    entrants.push_back({name, std::make_unique<EchoProcess>(settings, folder.path())});
  };
  add("1 queue, 1 thread", {.num_queues = 1, .threads_per_queue = 1});
  add("1 queue, 2 threads", {.num_queues = 1, .threads_per_queue = 2});
  add("2 queues, 1 thread each", {.num_queues = 2, .threads_per_queue = 1});
  add("1 queue, worker answers", {.num_queues = 1, .has_worker = true});
  add("callback", {.api = "callback"});
  add("bare socket", {.api = "socket"});
  return RunStudy(entrants, options);
}

std::vector<Figures> StudySettings(const StudyOptions& options) {
  const TemporaryFolder folder;
  std::vector<Entrant> entrants;
  const auto add = [&](const std::string& name, Memory memory, const ChannelSettings& channel) {
    entrants.push_back(
        {name, std::make_unique<EchoProcess>(EchoSettings{.memory = memory, .channel = channel},
                                             folder.path())});
  };
  add("chosen", Memory::kKeep, ChosenSettings());
  add("default allocator", Memory::kDefault, ChosenSettings());
  add("huge pages, environment", Memory::kKeepHuge, ChosenSettings());
  add("huge pages, reserved heap", Memory::kReserved, ChosenSettings());
  ChannelSettings channel = ChosenSettings();
  channel.socket_buffer_bytes = 0;
  add("default socket buffers", Memory::kKeep, channel);
  channel = ChosenSettings();
  channel.max_frame_bytes = 0;
  add("default frames", Memory::kKeep, channel);
  channel = ChosenSettings();
  channel.has_keepalive = true;
  add("keepalive", Memory::kKeep, channel);
  channel = ChosenSettings();
  channel.lookahead_bytes = 64 << 20;
  add("lookahead 64 MiB", Memory::kKeep, channel);
  channel.has_fixed_window = true;
  for (const int mib : {1, 4, 64}) {
    channel.lookahead_bytes = mib << 20;
    add("fixed window " + std::to_string(mib) + " MiB", Memory::kKeep, channel);
  }
  return RunStudy(entrants, options);
}

}  // namespace attention::bench
