#include "attention/client/merge.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace attention::client {
namespace {

constexpr float kNothingVisible = -std::numeric_limits<float>::infinity();

// A part widened to float32.
struct Part {
  std::vector<float> output;   // [rows, head_dim_v]
  std::span<const float> lse;  // [rows]
};

// The lse's shape is the output's without its last dimension.
bool ShapesFit(const Tensor& output, const Tensor& lse) {
  Shape expected = output.shape();
  expected.pop_back();
  return lse.shape() == expected;
}

absl::Status Check(absl::Span<const Partial> partials, std::size_t index) {
  const auto error = [index](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("partials[", index, "]: ", what));
  };
  const auto& [output, lse] = partials[index];
  if (output == nullptr || lse == nullptr || !output->is_present() || !lse->is_present()) {
    return error("output or lse is missing; ask for it with returns.lse");
  }
  if (output->dtype() == DType::kBool) return error("output is bool");
  if (lse->dtype() != DType::kFloat32) return error("lse is not float32");
  if (!ShapesFit(*output, *lse)) return error("lse is not shaped as output's rows");
  if (output->shape() != partials[0].output->shape()) return error("shape differs from the first");
  return absl::OkStatus();
}

// Merges one row of every part into `output` [head_dim_v] and returns the row's lse.
float MergeRow(const std::vector<Part>& parts, std::size_t row, std::span<float> output) {
  float max_lse = kNothingVisible;
  for (const Part& part : parts) {
    // fmax would drop a NaN, which has to reach the result.
    if (std::isnan(part.lse[row]) || part.lse[row] > max_lse) max_lse = part.lse[row];
    if (std::isnan(max_lse)) break;
  }
  if (max_lse == kNothingVisible) return kNothingVisible;
  float denominator = 0;
  for (const Part& part : parts) {
    if (part.lse[row] == kNothingVisible) continue;
    const float weight = part.lse[row] == max_lse ? 1.0f : std::exp(part.lse[row] - max_lse);
    denominator += weight;
    const float* values = part.output.data() + row * output.size();
    for (std::size_t i = 0; i < output.size(); ++i) output[i] += weight * values[i];
  }
  for (float& value : output) value /= denominator;
  return max_lse + std::log(denominator);
}

std::string Bytes(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

}  // namespace

absl::StatusOr<MergedPartials> MergePartials(absl::Span<const Partial> partials) {
  if (partials.empty()) return absl::InvalidArgumentError("partials: empty, expected at least one");
  std::vector<Part> parts;
  for (std::size_t i = 0; i < partials.size(); ++i) {
    if (absl::Status status = Check(partials, i); !status.ok()) return status;
    parts.push_back({partials[i].output->ToFloats(), partials[i].lse->floats()});
  }
  const Shape& shape = partials[0].output->shape();
  const std::size_t head_dim_v = static_cast<std::size_t>(shape.back());
  std::vector<float> output(parts[0].output.size(), 0.0f);
  std::vector<float> lse(parts[0].lse.size());
  for (std::size_t row = 0; row < lse.size(); ++row) {
    lse[row] = MergeRow(parts, row, std::span(output).subspan(row * head_dim_v, head_dim_v));
  }
  return MergedPartials{Tensor(DType::kFloat32, shape, Bytes(output)),
                        Tensor(DType::kFloat32, partials[0].lse->shape(), Bytes(lse))};
}

}  // namespace attention::client
