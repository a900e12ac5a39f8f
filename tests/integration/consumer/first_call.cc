// The first program of docs/clients.md, as its reader builds it: against the installed SDK, with
// CMake or pkg-config. Prints the first row of the output.
//
//   first_call [ADDRESS]
// [program]
#include <attention/client/client.h>

#include <iostream>
#include <vector>

using namespace attention::client;  // NOLINT(google-build-using-namespace): a sample reads better

int main(int argc, char** argv) {
  const auto connected = Client::Connect({.targets = {argc > 1 ? argv[1] : "localhost:7070"}});
  if (!connected.ok()) {
    std::cerr << connected.status() << '\n';
    return 2;
  }
  const std::vector<float> numbers(128 * 8 * 64, 0.5f);
  const TensorView rows(numbers, {128, 8, 64});  // tokens, heads, head dim; not copied
  const auto result =
      (*connected)->Attend({.q = rows, .k = rows, .v = rows, .config = {.is_causal = true}});
  if (!result.ok()) {
    std::cerr << result.status() << '\n';
    return 1;
  }
  for (const float value : result->output.floats().first(64)) std::cout << value << ' ';
  std::cout << '\n';
}
// [end]
