// A whole run over a client that is given: prepare, load, verify, report.
#pragma once

#include <functional>
#include <memory>
#include <ostream>

#include "attention/client/client.h"
#include "client/loadgen/clock.h"
#include "client/loadgen/options.h"
#include "client/loadgen/report.h"

namespace attention::loadgen {

// Where a run writes, what stops it and what time it goes by. All must outlive the run.
struct RunContext {
  std::ostream& out;  // the table
  std::ostream& err;  // progress and messages
  bool err_is_terminal = false;
  std::function<bool()> is_interrupted;  // polled
  Clock& clock;
};

// Returns the exit code. Blocks until the run is over.
ExitCode Run(const Options& options, const std::shared_ptr<client::Client>& client,
             const RunContext& context);

}  // namespace attention::loadgen
