// A program outside of the tree that uses the installed SDK: every public header, one call that
// finds no server, and arithmetic that needs none. Prints "consumer: OK".
#include <attention/client/attention.h>
#include <attention/client/client.h>
#include <attention/client/connection.h>
#include <attention/client/errors.h>
#include <attention/client/merge.h>
#include <attention/client/options.h>
#include <attention/client/retry_policy.h>
#include <attention/client/server_info.h>
#include <attention/client/session.h>
#include <attention/client/session_types.h>
#include <attention/client/step_stream.h>
#include <attention/client/tensor.h>

#include <cstdio>
#include <vector>

using namespace attention::client;  // NOLINT(google-build-using-namespace)

int main() {
  // Nothing listens on the discard port of this host.
  const auto client =
      Client::Connect({.targets = {"127.0.0.1:9"}, .retry_policy = RetryPolicy{.max_attempts = 1}});
  if (!client.ok()) return 1;
  const std::vector<float> ones(4, 1.0f);
  const TensorView rows(ones, {1, 1, 4});
  const auto result =
      (*client)->Attend({.q = rows, .k = rows, .v = rows, .config = {.is_causal = true}});
  if (!absl::IsUnavailable(result.status())) return 2;
  if (ErrorReason(result.status()).has_value()) return 3;

  const Tensor output = Tensor::FromFloats(ones, {1, 1, 4});
  const Tensor lse = Tensor::FromFloats(std::vector<float>{0}, {1, 1});
  const auto merged = MergePartials({Partial{&output, &lse}, Partial{&output, &lse}});
  if (!merged.ok() || merged->output.floats()[0] != 1.0f) return 4;

  std::printf("consumer: OK\n");
  return 0;
}
