#include <functional>
#include <memory>
#include <string>

#include "tests/benchmark/transport/attention_process.h"
#include "tests/benchmark/transport/attention_requests.h"
#include "tests/benchmark/transport/shared_channel.h"
#include "tests/benchmark/transport/studies.h"

namespace attention::bench {
namespace {

constexpr char kMessages[] = "message, unix socket";

struct Exchange {
  std::string name;
  std::size_t bytes;     // of tensors: of steps in and out together, of Attend each way
  int batch_size;        // of steps; 0: Attend
  double max_p50_ratio;  // of the channel, in place, against messages over the unix socket
};

Exchange Attend(const std::string& name, std::size_t bytes, double max_p50_ratio) {
  return {name, bytes, 0, max_p50_ratio};
}

Exchange Steps(const std::string& name, int batch_size, double max_p50_ratio) {
  return {name, static_cast<std::size_t>(batch_size) * (kStepBytesIn + kStepBytesOut), batch_size,
          max_p50_ratio};
}

std::vector<Exchange> AllExchanges() {
  constexpr std::size_t kKiB = 1024;
  return {
      Attend("16KiB", 16 * kKiB, 0),  Attend("32KiB", 32 * kKiB, 0),
      Attend("64KiB", 64 * kKiB, 0),  Attend("256KiB", 256 * kKiB, 0),
      Attend("1MiB", 1024 * kKiB, 0), Attend("16MiB", 16384 * kKiB, 0.25),
      Steps("layer", 1, 0),           Steps("layer-x64", 64, 0.5),
  };
}

Contender MakeContender(const std::string& name, const Exchange& exchange,
                        const AttentionProcess& server,
                        const AttentionProcess::Connection& connection, int max_in_flight,
                        const SharedChannel* channel) {
  const bool is_steps = exchange.batch_size > 0;
  return {.name = name,
          .caller = connection.caller.get(),
          .server = &server.process(),
          .make_requests =
              [&exchange, &connection, max_in_flight, channel, is_steps] {
                return is_steps ? MakeStepRequests(connection.channel, exchange.batch_size,
                                                   max_in_flight, channel)
                                : MakeAttendRequests(exchange.bytes, channel);
              },
          .load = {.method = is_steps ? kStepStream : kAttend,
                   .is_stream = is_steps,
                   .shared_bytes = channel == nullptr ? 0
                                   : is_steps         ? exchange.bytes
                                                      : 2 * exchange.bytes},
          .reference = name == kMessages ? "" : kMessages};
}

}  // namespace

std::vector<Figures> StudySharedMemory(const StudyOptions& options) {
  const TemporaryFolder folder;
  const AttentionProcess server(options.server_binary, options.backend, folder.path());
  const SharedChannel in_place(server.channel_path(), /*copies=*/false);
  const SharedChannel copied(server.channel_path(), /*copies=*/true);
  std::vector<Figures> all;
  PrintHeader();
  for (const Exchange& exchange : AllExchanges()) {
    if (options.is_quick && exchange.bytes > (std::size_t{2} << 20)) continue;
    if (exchange.name.find(options.filter) == std::string::npos) continue;
    const auto contender = [&](const std::string& name,
                               const AttentionProcess::Connection& connection,
                               const SharedChannel* channel) {
      return MakeContender(name, exchange, server, connection, options.contest.in_flight, channel);
    };
    Contender channel = contender("shared memory, in place", server.unix_socket(), &in_place);
    channel.max_p50_ratio = exchange.max_p50_ratio;
    const std::vector<Figures> figures =
        RunContest(exchange.name,
                   {contender(kMessages, server.unix_socket(), nullptr),
                    contender("message, TCP", server.tcp(), nullptr), channel,
                    contender("shared memory, copied in", server.unix_socket(), &copied)},
                   options.contest);
    Print(figures);
    all.insert(all.end(), figures.begin(), figures.end());
  }
  return all;
}

}  // namespace attention::bench
