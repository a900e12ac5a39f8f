// Results in lines of text and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/benchmark/cuda/measure.h"

namespace attention::bench {

// Heading and line of the table.
std::string TableHeading();
std::string TableLine(const CaseResult& result);

// "row|VERDICT|CASE|TIME|DETAIL", for the table of tests/gpu.sh. The verdict is "measured", or
// "FAILED" when ours is wrong or, with its name in the detail, a peer.
std::string RowLine(const CaseResult& result);

// Everything that was found, times in seconds.
nlohmann::json Record(const CaseResult& result);

// A line of what all cases have in common, for people: ceilings, clock, state of the cache.
std::string CeilingsLine(const Ceilings& ceilings, bool is_cold);

// True if a contender is wrong.
bool HasWrong(const CaseResult& result);

}  // namespace attention::bench
