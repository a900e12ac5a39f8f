// Reads a .safetensors file: eight bytes of length, a JSON header, the tensors.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace attention::examples {

// A file in memory. Not copied: the spans look into it.
class Safetensors {
 public:
  static absl::StatusOr<Safetensors> Read(const std::string& path);
  Safetensors(Safetensors&&) = default;
  Safetensors& operator=(Safetensors&&) = default;

  // NOT_FOUND; INVALID_ARGUMENT: not of so many elements of T's size.
  template <typename T>
  absl::StatusOr<std::span<const T>> Get(const std::string& name, std::size_t num_elements) const {
    absl::StatusOr<std::span<const std::byte>> bytes = Bytes(name, num_elements * sizeof(T));
    if (!bytes.ok()) return bytes.status();
    return std::span(reinterpret_cast<const T*>(bytes->data()), num_elements);
  }
  // A tensor's bytes; -1 for what is not there.
  std::int64_t NumBytes(const std::string& name) const;
  // The file's settings, as text.
  absl::StatusOr<std::string> Metadata(const std::string& name) const;

 private:
  struct Range {
    std::size_t begin = 0, end = 0;
  };
  Safetensors() = default;
  absl::Status ReadHeader(const std::string& text);
  absl::StatusOr<std::span<const std::byte>> Bytes(const std::string& name, std::size_t size) const;

  std::vector<std::byte> data_;
  std::map<std::string, Range> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace attention::examples
