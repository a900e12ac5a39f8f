#include "server/rpc/reset_watch.h"

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace attention::server {
namespace {

using nlohmann::json;

// Connections are looked at when so many more calls than at the last look have not succeeded, or
// not yet.
constexpr std::int64_t kWorthALook = 250;

constexpr int kConnectionsPerLook = 256;

// Parses an answer of gRPC's channelz; discarded when there is no such thing.
json Parse(char* text) {
  if (text == nullptr) return json(json::value_t::discarded);
  const std::unique_ptr<char, decltype(&gpr_free)> owned(text, gpr_free);
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

// Numbers are strings, and absent when they are zero.
std::int64_t Number(const json& object, const char* key) {
  const auto it = object.find(key);
  std::int64_t number = 0;
  return it != object.end() && it->is_string() &&
                 absl::SimpleAtoi(it->get_ref<const std::string&>(), &number)
             ? number
             : 0;
}

// "chttp2 ipv6:%5B::1%5D:7070" is "ipv6:::1:7070" to the connections' table.
std::string AddressOf(const std::string& name) {
  const auto space = name.find(' ');
  return absl::StrReplaceAll(space == std::string::npos ? name : name.substr(space + 1),
                             {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
}

ConnectionCounts CountsOf(std::int64_t id) {
  ConnectionCounts counts;
  const json answer = Parse(grpc_channelz_get_socket(static_cast<std::intptr_t>(id)));
  if (!answer.is_object() || !answer.contains("socket")) return counts;
  const json& socket = answer["socket"];
  counts.id = id;
  counts.address = AddressOf(socket.value("/ref/name"_json_pointer, std::string()));
  const json data = socket.value("data", json::object());
  counts.succeeded = Number(data, "streamsSucceeded");
  counts.reset =
      std::max(Number(data, "streamsFailed"),
               Number(data, "streamsStarted") - counts.succeeded - ResetWatch::kMaxConcurrentCalls);
  return counts;
}

}  // namespace

bool ResetBudget::Spend(std::int64_t reset, std::int64_t succeeded, absl::Time now) {
  const std::int64_t new_resets = reset - std::exchange(reset_, reset);
  const std::int64_t new_successes = succeeded - std::exchange(succeeded_, succeeded);
  left_ = std::min(kMost, left_ + kPerSecond * absl::ToDoubleSeconds(now - last_));
  last_ = now;
  left_ -= static_cast<double>(new_resets);
  return left_ >= 0 || new_resets <= new_successes;
}

ResetWatch::ResetWatch(std::function<bool(const std::string& address)> close,
                       std::function<void(const std::string& text)> warn, ServerMetrics& metrics)
    : close_(std::move(close)), warn_(std::move(warn)), metrics_(metrics) {}

void ResetWatch::Look(absl::Time now) {
  const json answer = Parse(grpc_channelz_get_servers(0));
  if (!answer.is_object() || !answer.contains("server")) return;
  for (const json& server : answer["server"]) {
    const std::int64_t id = Number(server.value("ref", json::object()), "serverId");
    const json data = server.value("data", json::object());
    const std::int64_t unanswered = Number(data, "callsStarted") - Number(data, "callsSucceeded");
    const std::int64_t before = std::exchange(unanswered_calls_[id], unanswered);
    if (unanswered - before >= kWorthALook) LookAtServer(id, now);
  }
}

void ResetWatch::LookAtServer(std::int64_t server, absl::Time now) {
  const json answer = Parse(grpc_channelz_get_server_sockets(static_cast<std::intptr_t>(server),
                                                             static_cast<std::intptr_t>(next_id_),
                                                             kConnectionsPerLook));
  if (!answer.is_object()) return;
  for (const json& socket : answer.value("socketRef", json::array())) {
    const ConnectionCounts counts = CountsOf(Number(socket, "socketId"));
    if (counts.id == 0) continue;
    Judge(counts, now);
    next_id_ = counts.id + 1;
  }
  if (!answer.value("end", false)) return;
  next_id_ = 0;
  ++round_;
  std::erase_if(watched_, [&](const auto& entry) { return entry.second.round < round_ - 1; });
}

void ResetWatch::Judge(const ConnectionCounts& counts, absl::Time now) {
  const auto [entry, is_new] = watched_.try_emplace(counts.id, now);
  Watched& watched = entry->second;
  watched.round = round_;
  if (watched.budget.Spend(counts.reset, counts.succeeded, now) || watched.is_told) return;
  watched.is_told = true;
  metrics_.connections_reset_too_often.Add();
  const bool is_closed = close_(counts.address);
  warn_(absl::StrCat(
      counts.address, " has reset ", counts.reset, " of its calls, more than ", ResetBudget::kMost,
      " at once: ", is_closed ? "its connection is closed" : "its connection cannot be told"));
}

}  // namespace attention::server
