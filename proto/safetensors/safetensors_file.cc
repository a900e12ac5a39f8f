#include "proto/safetensors/safetensors_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::safetensors {
namespace {

constexpr std::size_t kLengthBytes = 8;
// The format's own bound.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

// Absent for types that are not known here: newer ones, some of less than a byte an element.
std::optional<std::int64_t> ElementBytes(absl::string_view dtype) {
  constexpr std::pair<absl::string_view, std::int64_t> kTypes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  for (const auto& [name, bytes] : kTypes) {
    if (name == dtype) return bytes;
  }
  return std::nullopt;
}

// False where an entry is not what the format says.
bool ReadTensor(const nlohmann::json& entry, absl::string_view data, FileTensor* tensor) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string()) return false;
  if (!entry.contains("shape") || !entry["shape"].is_array()) return false;
  if (!entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
      entry["data_offsets"].size() != 2) {
    return false;
  }
  tensor->dtype = entry["dtype"].get<std::string>();
  const std::optional<std::int64_t> element_bytes = ElementBytes(tensor->dtype);
  std::int64_t bytes = element_bytes.value_or(1);
  for (const nlohmann::json& dimension : entry["shape"]) {
    if (!dimension.is_number_unsigned()) return false;
    tensor->shape.push_back(dimension.get<std::int64_t>());
    if (tensor->shape.back() < 0 || __builtin_mul_overflow(bytes, tensor->shape.back(), &bytes)) {
      return false;
    }
  }
  const nlohmann::json& offsets = entry["data_offsets"];
  if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) return false;
  const auto begin = offsets[0].get<std::uint64_t>();
  const auto end = offsets[1].get<std::uint64_t>();
  if (begin > end || end > data.size()) return false;
  if (element_bytes && end - begin != static_cast<std::uint64_t>(bytes)) return false;
  tensor->bytes = data.substr(begin, end - begin);
  return true;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const File>> File::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  if (fd < 0 || fstat(fd, &info) != 0) {
    const std::string reason = std::strerror(errno);
    if (fd >= 0) close(fd);
    return absl::NotFoundError(absl::StrCat(path, " cannot be opened: ", reason));
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  void* data = size == 0 ? MAP_FAILED : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (data == MAP_FAILED) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes, expected a .safetensors file"));
  }
  std::shared_ptr<File> file(new File(path, static_cast<const char*>(data), size));
  if (absl::Status status = file->ReadHeader(); !status.ok()) return status;
  return std::shared_ptr<const File>(std::move(file));
}

File::~File() { munmap(const_cast<char*>(data_), size_); }

absl::Status File::ReadHeader() {
  std::uint64_t length = 0;
  if (size_ >= kLengthBytes) std::memcpy(&length, data_, kLengthBytes);
  if (size_ < kLengthBytes || length > kMaxHeaderBytes || length > size_ - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " begins with a header of ", length,
                                                   " bytes, expected at most what the file holds"));
  }
  const char* header = data_ + kLengthBytes;
  const nlohmann::json json =
      nlohmann::json::parse(header, header + length, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path_, " has a header that is no JSON object"));
  }
  const absl::string_view data(header + length, size_ - kLengthBytes - length);
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") continue;
    if (!ReadTensor(entry, data, &tensors_[name])) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, " describes the tensor '", name,
                       "' wrongly, expected dtype, shape, and data_offsets of as many bytes"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<FileTensor> File::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it != tensors_.end()) return it->second;
  return absl::NotFoundError(absl::StrCat(path_, " has no tensor '", name, "'"));
}

}  // namespace attention::safetensors
