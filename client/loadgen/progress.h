// A line a second on stderr while the load runs. On a terminal it is one line that is rewritten.
// Used by one thread.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/time/time.h"
#include "client/loadgen/collector.h"
#include "client/loadgen/driver.h"
#include "client/loadgen/options.h"

namespace attention::loadgen {

// "12s/20s recording  843.2 req/s  p50 1.21 ms  p99 3.40 ms  errors 0  refused 0  in flight 8"
std::string FormatProgress(const Options& options, const DriverState& state,
                           const Interval& interval, absl::Duration interval_length);

class Progress {
 public:
  // Silent with --quiet; otherwise the load is shown on a terminal or with --progress, and the
  // checks, during which nothing else happens, always. All must outlive the progress.
  Progress(const Options& options, Collector& collector, std::ostream& out, bool is_terminal);
  // Ends the rewritten line.
  ~Progress();

  // To be called often; writes once a second.
  void Update(const DriverState& state);
  void UpdateVerifying(std::int64_t left);

 private:
  bool IsDue(absl::Duration now) const;
  void Write(const std::string& line);

  const Options& options_;
  Collector& collector_;
  std::ostream& out_;
  const bool is_terminal_;
  absl::Duration last_ = absl::ZeroDuration();
  absl::Duration last_check_ = -absl::InfiniteDuration();
  bool has_written_ = false;
};

}  // namespace attention::loadgen
