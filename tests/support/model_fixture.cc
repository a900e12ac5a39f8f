#include "tests/support/model_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

nlohmann::json ReadManifest(const std::string& directory) {
  std::ifstream file(directory + "/manifest.json");
  ATTENTION_CHECK(file.is_open());
  return nlohmann::json::parse(file);
}

std::string ReadBytes(const std::string& path, const nlohmann::json& entry) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(entry.at("nbytes").get<std::size_t>(), '\0');
  file.seekg(entry.at("offset").get<std::streamoff>());
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ATTENTION_CHECK(file.good());
  return bytes;
}

double Largest(const v1::Tensor& tensor) {
  double largest = 0;
  for (std::int64_t i = 0; i < NumElements(tensor); ++i) {
    const double value = std::abs(static_cast<double>(ElementAt(tensor, i)));
    if (std::isfinite(value)) largest = std::max(largest, value);
  }
  return largest;
}

std::string Compare(const char* name, const v1::Tensor& actual, const v1::Tensor& expected,
                    double bound) {
  if (ShapeOf(actual) != ShapeOf(expected)) return std::string(name) + " has another shape";
  for (std::int64_t i = 0; i < NumElements(expected); ++i) {
    const double a = ElementAt(actual, i);
    const double e = ElementAt(expected, i);
    if (std::isinf(e) ? a == e : std::abs(a - e) <= bound) continue;
    return std::string(name) + " element " + std::to_string(i) + " is " + std::to_string(a) +
           ", expected " + std::to_string(e) + " within " + std::to_string(bound);
  }
  return "";
}

}  // namespace

ModelFixture::ModelFixture(const std::string& name)
    : directory_(std::string(ATTENTION_FIXTURES) + "/" + name) {
  const nlohmann::json manifest = ReadManifest(directory_);
  layers_ = manifest.at("layers").get<std::vector<int>>();
  if (!manifest.at("tensors").contains("lengths")) return;
  const std::string bytes =
      ReadBytes(directory_ + "/tensors.bin", manifest.at("tensors").at("lengths"));
  std::vector<std::int32_t> lengths(bytes.size() / sizeof(std::int32_t));
  std::memcpy(lengths.data(), bytes.data(), bytes.size());
  lengths_.assign(lengths.begin(), lengths.end());
}

v1::Tensor ModelFixture::Read(const std::string& tensor) const {
  const nlohmann::json entry = ReadManifest(directory_).at("tensors").at(tensor);
  v1::Tensor result;
  result.set_dtype(entry.at("dtype") == "bfloat16" ? v1::DTYPE_BFLOAT16 : v1::DTYPE_FLOAT32);
  for (const std::int64_t dimension : entry.at("shape")) result.add_shape(dimension);
  result.set_data(ReadBytes(directory_ + "/tensors.bin", entry));
  return result;
}

v1::AttendRequest ModelFixture::Request(int layer) const {
  const std::string prefix = "layer" + std::to_string(layer) + ".";
  v1::AttendRequest request;
  *request.mutable_q() = Read(prefix + "q");
  *request.mutable_k() = Read(prefix + "k");
  *request.mutable_v() = Read(prefix + "v");
  request.mutable_config()->set_is_causal(ReadManifest(directory_).at("is_causal").get<bool>());
  request.mutable_returns()->set_lse(true);
  return request;
}

std::string ModelFixture::FindMismatch(int layer, const v1::AttendResponse& response) const {
  const std::string prefix = "layer" + std::to_string(layer) + ".";
  const v1::Tensor output = Read(prefix + "output");
  const v1::Tensor lse = Read(prefix + "lse");
  const double epsilon = DTypeEpsilon(FromWire(Read(prefix + "q").dtype()));
  const std::string error =
      Compare("output", response.output(), output,
              epsilon * Largest(output) + 0x1p-18 * Largest(Read(prefix + "v")));
  if (!error.empty()) return error;
  return Compare("lse", response.lse(), lse, 0x1p-18 * std::max(1.0, Largest(lse)));
}

}  // namespace attention::testing
