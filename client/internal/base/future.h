// Futures of calls that take a callback.
#pragma once

#include <future>
#include <memory>
#include <utility>

#include "attention/client/options.h"

namespace attention::client::internal {

// The future of what `start` passes to the callback it is given. The promise is shared, because a
// std::function has to be copyable and because a waiter may return, and drop its own, while
// set_value is still on its way out.
template <typename Outcome, typename Start>
std::future<Outcome> FutureOf(Start start) {
  auto promise = std::make_shared<std::promise<Outcome>>();
  std::future<Outcome> future = promise->get_future();
  start([promise](Outcome outcome) { promise->set_value(std::move(outcome)); });
  return future;
}

// The options of a call whose caller waits for it.
inline CallOptions Waiting(CallOptions options) {
  options.may_block = true;
  return options;
}

}  // namespace attention::client::internal
