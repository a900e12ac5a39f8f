#include "client/examples/smollm2_safetensors.h"

#include <cstdint>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace attention::examples {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own bound

}  // namespace

absl::StatusOr<Safetensors> Safetensors::Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const auto file_bytes = static_cast<std::uint64_t>(file.tellg());
  file.seekg(0);
  std::uint64_t header_bytes = 0;  // little-endian, as every machine this runs on
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  if (!file || header_bytes > kMaxHeaderBytes || header_bytes + sizeof header_bytes > file_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a .safetensors file"));
  }
  std::string header(header_bytes, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  Safetensors result;
  result.data_.resize(file_bytes - sizeof header_bytes - header_bytes);
  file.read(reinterpret_cast<char*>(result.data_.data()),
            static_cast<std::streamsize>(result.data_.size()));
  if (!file) return absl::DataLossError(absl::StrCat(path, ": cannot be read to its end"));
  const absl::Status status = result.ReadHeader(header);
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  return result;
}

absl::Status Safetensors::ReadHeader(const std::string& text) {
  const nlohmann::json header = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return absl::InvalidArgumentError("its header is not a JSON object");
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    const nlohmann::json offsets = entry.value("data_offsets", nlohmann::json());
    if (offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has no data_offsets"));
    }
    const Range range{offsets[0].get<std::size_t>(), offsets[1].get<std::size_t>()};
    if (range.begin > range.end || range.end > data_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, " lies outside the file's ", data_.size(), " bytes"));
    }
    tensors_[name] = range;
  }
  return absl::OkStatus();
}

std::int64_t Safetensors::NumBytes(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return -1;
  return static_cast<std::int64_t>(found->second.end - found->second.begin);
}

absl::StatusOr<std::string> Safetensors::Metadata(const std::string& name) const {
  const auto found = metadata_.find(name);
  if (found != metadata_.end()) return found->second;
  return absl::NotFoundError(absl::StrCat("the model has no setting ", name));
}

absl::StatusOr<std::span<const std::byte>> Safetensors::Bytes(const std::string& name,
                                                              std::size_t size) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat("the model has no tensor ", name));
  }
  const auto [begin, end] = found->second;
  if (end - begin != size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " has ", end - begin, " bytes, expected ", size));
  }
  return std::span(data_).subspan(begin, size);
}

}  // namespace attention::examples
