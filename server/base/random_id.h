// Names that nobody can guess.
#pragma once

#include <string>

namespace attention::server {

// 128 random bits in hexadecimal, from the system's generator. Thread-safe.
std::string MakeRandomId();

}  // namespace attention::server
