#include <cstdio>
#include <functional>
#include <memory>

#include "tests/benchmark/transport/attention_process.h"
#include "tests/benchmark/transport/attention_requests.h"
#include "tests/benchmark/transport/echo_contender.h"
#include "tests/benchmark/transport/studies.h"

namespace attention::bench {
namespace {

using MakeRequests =
    std::function<std::unique_ptr<Requests>(const AttentionProcess::Connection& connection)>;

struct Exchange {
  std::string name;
  bool is_stream;
  std::size_t bytes_in, bytes_out;  // of tensors
  MakeRequests make_requests;
  // Against the echo.
  double max_p50_ratio;
  double min_throughput_ratio;
};

Exchange AttendExchange(const std::string& name, std::size_t bytes, double max_p50_ratio,
                        double min_throughput_ratio) {
  return {name,
          false,
          bytes,
          bytes,
          [bytes](const AttentionProcess::Connection&) { return MakeAttendRequests(bytes); },
          max_p50_ratio,
          min_throughput_ratio};
}

Exchange StepExchange(const std::string& name, int batch_size, int max_in_flight,
                      double max_p50_ratio) {
  const auto count = static_cast<std::size_t>(batch_size);
  return {name,
          true,
          count * kStepBytesIn,
          count * kStepBytesOut,
          [=](const AttentionProcess::Connection& connection) {
            return MakeStepRequests(connection.channel, batch_size, max_in_flight);
          },
          max_p50_ratio,
          0};
}

std::vector<Exchange> AllExchanges(int max_in_flight) {
  return {
      AttendExchange("1KiB", 1024, 1.25, 0),
      AttendExchange("64KiB", std::size_t{64} << 10, 1.25, 0),
      AttendExchange("1MiB", std::size_t{1} << 20, 1.15, 0.9),
      AttendExchange("16MiB", std::size_t{16} << 20, 1.15, 0),
      StepExchange("layer", 1, max_in_flight, 1.2),
      StepExchange("layer-x64", 64, max_in_flight, 0),
  };
}

// The wire's bytes of a request and of its answer, found by trying.
struct WireBytes {
  std::size_t in, out;
};
WireBytes Measure(const Contender& contender) {
  constexpr double kTrySeconds = 0.01;
  // Another series: each request of a session must be sent.
  const std::size_t in = contender.make_requests()->Next().Length();
  const auto requests = contender.make_requests();
  Load load = contender.load;
  load.seconds = kTrySeconds;
  const Sample sample = contender.caller->Run(load, *requests);
  return {in, sample.bytes / sample.latencies.size() - in};
}

Contender MakeServerContender(const Exchange& exchange, const AttentionProcess& server,
                              const AttentionProcess::Connection& connection) {
  return {.name = "attention-server",
          .caller = connection.caller.get(),
          .server = &server.process(),
          .make_requests = [&] { return exchange.make_requests(connection); },
          .load = {.method = exchange.is_stream ? kStepStream : kAttend,
                   .is_stream = exchange.is_stream,
                   .min_answer_bytes = exchange.bytes_out},
          .reference = "echo",
          .max_p50_ratio = exchange.max_p50_ratio,
          .min_throughput_ratio = exchange.min_throughput_ratio};
}

Contender MakeEchoContender(const std::string& name, bool is_stream, const WireBytes& bytes,
                            const EchoProcess& echo, bool is_unix) {
  return {.name = name,
          .caller = is_unix ? echo.unix_socket() : echo.tcp(),
          .server = &echo.process(),
          .make_requests = [bytes] { return MakeEchoRequests(bytes.in, bytes.out); },
          .load = {.method = is_stream ? kStreamEcho : kUnaryEcho,
                   .is_stream = is_stream,
                   .min_answer_bytes = bytes.out}};
}

}  // namespace

std::vector<Figures> StudyServer(const StudyOptions& options) {
  const TemporaryFolder folder;
  const AttentionProcess server(options.server_binary, options.backend, folder.path());
  const EchoProcess echo({.channel = ChosenSettings()}, folder.path());
  const EchoProcess worker({.has_worker = true, .channel = ChosenSettings()}, folder.path());
  const EchoProcess copying({.is_copying = true, .channel = ChosenSettings()}, folder.path());
  const EchoProcess bare({.api = "socket", .channel = ChosenSettings()}, folder.path());
  std::vector<Figures> all;
  PrintHeader();
  for (const Exchange& exchange : AllExchanges(options.contest.in_flight)) {
    if (options.is_quick && exchange.bytes_in > (std::size_t{1} << 20)) continue;
    for (const bool is_unix : {false, true}) {
      const std::string name = exchange.name + (is_unix ? "/unix" : "/tcp");
      if (name.find(options.filter) == std::string::npos) continue;
      const Contender ours =
          MakeServerContender(exchange, server, is_unix ? server.unix_socket() : server.tcp());
      const WireBytes bytes = Measure(ours);
      Contender copies =
          MakeEchoContender("echo, copy and write", exchange.is_stream, bytes, copying, is_unix);
      copies.reference = "echo";
      const std::vector<Figures> figures = RunContest(
          name,
          {MakeEchoContender("echo", exchange.is_stream, bytes, echo, is_unix),
           MakeEchoContender("echo, worker answers", exchange.is_stream, bytes, worker, is_unix),
           copies, MakeEchoContender("bare socket", exchange.is_stream, bytes, bare, is_unix),
           ours},
          options.contest);
      Print(figures);
      all.insert(all.end(), figures.begin(), figures.end());
    }
  }
  return all;
}

}  // namespace attention::bench
