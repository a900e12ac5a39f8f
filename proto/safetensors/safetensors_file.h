// Tensors of a .safetensors file: a JSON header that names them, and their bytes, which are mapped
// into memory and read in place. For the server, which preloads layers, and for the client, which
// uploads them.
//
// Thread-safety: const methods from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attention::safetensors {

struct FileTensor {
  // The type's name in the file: "F32", "F16", "BF16", ...; it may be one that nobody here knows.
  std::string dtype;
  std::vector<std::int64_t> shape;
  absl::string_view bytes;  // row-major, little-endian; any alignment; in the file
};

class File {
 public:
  // NOT_FOUND when the file cannot be opened; INVALID_ARGUMENT says what is wrong with its
  // contents. The file must not shrink while this lives.
  static absl::StatusOr<std::shared_ptr<const File>> Open(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // By name.
  const std::map<std::string, FileTensor>& tensors() const { return tensors_; }
  // NOT_FOUND names the file and the tensor.
  absl::StatusOr<FileTensor> Find(const std::string& name) const;

 private:
  File(std::string path, const char* data, std::size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  absl::Status ReadHeader();

  const std::string path_;
  const char* const data_;
  const std::size_t size_;
  std::map<std::string, FileTensor> tensors_;
};

}  // namespace attention::safetensors
