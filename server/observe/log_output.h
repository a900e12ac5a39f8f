// The descriptor that the log is written to. Who reads there, be it a pipe's other end or a
// terminal, may stop reading; lines are lost then, and counted, because neither calls nor the end
// of the process may wait for a reader of the log.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace attention::server {

class LogOutput {
 public:
  explicit LogOutput(int descriptor) : descriptor_(descriptor) {}
  LogOutput(const LogOutput&) = delete;
  LogOutput& operator=(const LogOutput&) = delete;

  // Writes a line with its end. Without room it waits for a moment, and after a wait in vain no
  // more until there has been room.
  void Write(std::string_view line);

  // The lines that were lost since the last call; 0 while there is no room to tell of them.
  std::int64_t TakeLost();

 private:
  bool WriteAll(std::string_view text) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int descriptor_;
  Mutex mutex_;
  bool is_stuck_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_cut_ ABSL_GUARDED_BY(mutex_) = false;  // a line's beginning was written, its end was not
  std::int64_t num_lost_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace attention::server
