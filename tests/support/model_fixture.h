// Tensors that real models produced (tests/fixtures), with the results that are right for them.
#pragma once

#include <string>
#include <vector>

#include "attention/v1/attention_service.pb.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {

class ModelFixture {
 public:
  // `name` is a directory of tests/fixtures. Ends the process when it cannot be read.
  explicit ModelFixture(const std::string& name);

  const std::vector<int>& layers() const { return layers_; }
  // The valid tokens of each sequence of a padded batch; empty when there is no batch.
  const std::vector<std::int64_t>& lengths() const { return lengths_; }

  // q, k and v of a layer, the model's causality, asking for lse; lengths are not set.
  v1::AttendRequest Request(int layer) const;

  // Empty when the response agrees with the layer's stored float64 results; else what does not.
  // Bounds: an output may be off by one epsilon of its type at the largest output plus 2^-18 of
  // the largest value, an lse by 2^-18 of its magnitude (wire_oracle.h gives the reasons).
  std::string FindMismatch(int layer, const v1::AttendResponse& response) const;

 private:
  v1::Tensor Read(const std::string& tensor) const;

  std::string directory_;
  std::vector<int> layers_;
  std::vector<std::int64_t> lengths_;
};

}  // namespace attention::testing
