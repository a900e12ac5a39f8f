// Names and numbers that nobody can guess.
#pragma once

#include <cstdint>
#include <string>

namespace attention::server {

// 128 random bits in hexadecimal, from the system's generator. Thread-safe.
std::string MakeRandomId();

// 64 random bits, not all 0. Thread-safe.
std::uint64_t MakeRandomNumber();

}  // namespace attention::server
