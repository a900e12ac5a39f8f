// The tokens of a layer: all that were appended, but for those that were let go.
#pragma once

#include <cstdint>

namespace attention::server {

struct LayerTokens {
  std::int64_t length = 0;            // that were appended: the position of the next one
  std::int64_t num_dropped = 0;       // of those, that KeepTokens has let go
  std::int64_t compacted_length = 0;  // the length when it last did; all from there on are there
  // Where a window has let go tokens: those in [sink_end, first_position). 0: none.
  std::int64_t sink_end = 0;
  std::int64_t first_position = 0;

  std::int64_t num_held() const { return length - num_dropped; }
};

}  // namespace attention::server
