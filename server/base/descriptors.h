// The number of files and sockets that this process may have open.
#pragma once

#include <cstdint>

namespace attention::server {

// RLIMIT_NOFILE as it is now.
std::int64_t DescriptorLimit();

// Raises it as far as this user may; the usual 1024 is for programs that use select(). Returns what
// it is then.
std::int64_t RaiseDescriptorLimit();

// Connections that may be open together where nothing is configured: leaves descriptors for files,
// shared memory, devices and the admin port.
std::int64_t DefaultMaxConnections(std::int64_t descriptor_limit);

// The most that may be configured.
std::int64_t LargestMaxConnections(std::int64_t descriptor_limit);

}  // namespace attention::server
