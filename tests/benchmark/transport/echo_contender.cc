#include "tests/benchmark/transport/echo_contender.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/benchmark/transport/process_memory.h"

namespace attention::bench {
namespace {

std::string NextPath(const std::string& folder) {
  static int count = 0;
  return folder + "/echo" + std::to_string(count++) + ".sock";
}

std::vector<std::string> EnvironmentOf(const EchoSettings& settings) {
  if (settings.memory != Memory::kKeepHuge) return {};
  return {std::string(kHugePagesVariable) + "=" + kHugePagesValue};
}

class RepeatedRequest final : public Requests {
 public:
  explicit RepeatedRequest(grpc::ByteBuffer request) : request_(std::move(request)) {}
  grpc::ByteBuffer Next() override { return request_; }  // a reference

 private:
  const grpc::ByteBuffer request_;
};

}  // namespace

EchoProcess::EchoProcess(const EchoSettings& settings, const std::string& folder)
    : path_(NextPath(folder)),
      process_({OwnPath(), "--serve", nlohmann::json(settings).dump(), path_},
               EnvironmentOf(settings)) {
  const std::string port = process_.ReadLine();
  if (port.empty()) {
    std::fprintf(stderr, "an echo server (%s) did not start\n", settings.api.c_str());
    std::exit(1);
  }
  const auto make_caller = [&](const std::string& target) {
    return settings.api == "socket" ? MakeSocketCaller(target, settings.channel)
                                    : MakeGrpcCaller(Connect(target, settings.channel));
  };
  tcp_ = make_caller("127.0.0.1:" + port);
  unix_socket_ = make_caller("unix:" + path_);
}

std::unique_ptr<Requests> MakeEchoRequests(std::size_t request_bytes, AnswerBytes answer_bytes,
                                           std::size_t num_slices) {
  std::string bytes(request_bytes, 'q');
  std::memcpy(bytes.data(), &answer_bytes, sizeof(answer_bytes));
  std::vector<grpc::Slice> slices;
  for (std::size_t i = 0; i < num_slices; ++i) {
    const std::size_t begin = request_bytes * i / num_slices;
    const std::size_t end = request_bytes * (i + 1) / num_slices;
    slices.emplace_back(bytes.data() + begin, end - begin);
  }
  return std::make_unique<RepeatedRequest>(grpc::ByteBuffer(slices.data(), slices.size()));
}

}  // namespace attention::bench
