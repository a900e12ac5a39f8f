// Continues prompts with SmolLM2-135M, whose attention and KV cache are in an attention-server.
//
//   smollm2_export.py --model smollm2.safetensors --prompts prompts.json "The capital of France is"
//   attention-smollm2 --model smollm2.safetensors --prompts prompts.json --target localhost:7070
//
// All prompts advance together: each layer of each step is one request with the new rows of every
// sequence. Decoding is greedy. With --attention local the same kernels run in this process.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/time/clock.h"
#include "attention/client/version.h"
#include "client/examples/smollm2_attention.h"
#include "client/examples/smollm2_model.h"
#include "client/flags/connection_flags.h"
#include "nlohmann/json.hpp"

namespace {

using namespace attention::examples;  // NOLINT(google-build-using-namespace): a sample reads better

struct Options {
  std::string model, prompts, attention = "remote";
  attention::client::ClientOptions connection = {.targets = {"localhost:7070"}};
  int max_tokens = 64;
  bool print_ids = false;
};

struct Prompt {
  std::string text;
  std::vector<std::int32_t> ids;
};

// Throws nlohmann::json::exception.
std::vector<Prompt> ReadPrompts(const std::string& path) {
  std::ifstream file(path);
  std::vector<Prompt> prompts;
  for (const nlohmann::json& entry : nlohmann::json::parse(file)) {
    prompts.push_back({entry.at("text"), entry.at("ids").get<std::vector<std::int32_t>>()});
  }
  return prompts;
}

struct Speed {
  std::int64_t tokens = 0;
  absl::Duration time;
};

void Print(const char* what, const Speed& speed) {
  const double seconds = absl::ToDoubleSeconds(speed.time);
  std::printf("%s: %lld tokens in %.2f s, %.1f tokens/s\n", what,
              static_cast<long long>(speed.tokens), seconds,
              seconds > 0 ? static_cast<double>(speed.tokens) / seconds : 0.0);
}

// Until each sequence has come to its end, which is left out, or to max_tokens. speeds[0] is of the
// prompts' pass, speeds[1] of all that follow.
absl::Status Generate(SmolLm2& model, ModelAttention& attention, int max_tokens,
                      std::vector<Sequence>& sequences, Speed (&speeds)[2]) {
  for (int step = 0; step < max_tokens; ++step) {
    Speed& speed = speeds[step == 0 ? 0 : 1];
    bool is_done = true;
    for (const Sequence& sequence : sequences) {
      if (sequence.is_finished) continue;
      is_done = false;
      speed.tokens += std::ssize(sequence.tokens) - sequence.length;
    }
    if (is_done) break;
    const absl::Time start = absl::Now();
    const absl::Status status = model.Advance(sequences, attention);
    if (!status.ok()) return status;
    speed.time += absl::Now() - start;
    for (Sequence& sequence : sequences) {
      if (sequence.is_finished || !model.IsEnd(sequence.tokens.back())) continue;
      sequence.is_finished = true;
      sequence.tokens.pop_back();
    }
  }
  return absl::OkStatus();
}

void PrintTexts(const SmolLm2& model, const std::vector<Prompt>& prompts,
                const std::vector<Sequence>& sequences, bool print_ids) {
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::span generated = std::span(sequences[i].tokens).subspan(prompts[i].ids.size());
    std::printf("> %s\n%s\n\n", prompts[i].text.c_str(), model.Text(generated).c_str());
    if (!print_ids) continue;
    std::printf("ids:");
    for (const std::int32_t token : generated) std::printf(" %d", token);
    std::printf("\n");
  }
}

absl::Status Run(const Options& options) {
  const std::vector<Prompt> prompts = ReadPrompts(options.prompts);
  auto model = SmolLm2::Load(options.model);
  if (!model.ok()) return model.status();
  const int num_sequences = static_cast<int>(prompts.size());
  auto attention = options.attention == "local"
                       ? MakeLocalAttention((*model)->shape(), num_sequences)
                       : MakeRemoteAttention(options.connection, (*model)->shape(), num_sequences);
  if (!attention.ok()) return attention.status();
  std::vector<Sequence> sequences;
  for (const Prompt& prompt : prompts) {
    if (prompt.ids.empty()) return absl::InvalidArgumentError("a prompt has no tokens");
    sequences.push_back({.tokens = prompt.ids});
  }
  Speed speeds[2];
  absl::Status status = Generate(**model, **attention, options.max_tokens, sequences, speeds);
  status.Update((*attention)->Close());
  if (!status.ok()) return status;
  PrintTexts(**model, prompts, sequences, options.print_ids);
  std::printf("attention: %s, %d sequences at once\n", options.attention.c_str(), num_sequences);
  Print("prompts", speeds[0]);
  Print("decode", speeds[1]);
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Continues prompts with SmolLM2-135M on remote attention");
  app.add_option("--model", options.model, "weights, from smollm2_export.py")->required();
  app.add_option("--prompts", options.prompts, "token ids, from smollm2_export.py")->required();
  app.add_option_function<std::string>(
      "--target", [&options](const std::string& target) { options.connection.targets = {target}; },
      "host:port of the server");
  attention::client::AddConnectionFlags(app, &options.connection);
  app.add_option("--attention", options.attention)->check(CLI::IsMember({"remote", "local"}));
  app.add_option("--max-tokens", options.max_tokens, "new tokens of each prompt");
  app.add_flag("--print-ids", options.print_ids, "print token ids too");
  app.set_version_flag("--version",
                       "attention-smollm2 " + std::string(attention::client::Version()));
  CLI11_PARSE(app, argc, argv);
  try {
    const absl::Status status = Run(options);
    if (status.ok()) return 0;
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
  } catch (const std::exception& error) {  // of the JSON library and of oneDNN
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 1;
}
