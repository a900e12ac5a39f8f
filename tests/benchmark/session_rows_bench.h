// How fast a worker moves rows of caches: tokens that are kept, rows that are read and written,
// beside the copy of as many bytes.
#pragma once

namespace attention::bench {

// Prints a line for each; false when there is not enough memory.
bool RunRowsBench(int rounds);

}  // namespace attention::bench
