// Projections for tests: matrices of random numbers, tasks over them, and how far a result may be
// from float64's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/api/projection.h"
#include "tests/support/tolerance.h"

namespace attention::testing {

struct Matrix {
  Matrix(std::int64_t rows, std::int64_t columns, DType dtype, std::uint32_t seed, float scale = 1)
      : rows(rows), columns(columns), dtype(dtype), bytes(rows * columns * DTypeBytes(dtype)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      StoreElement(bytes.data(), dtype, i, normal(random));
    }
  }
  float at(std::int64_t row, std::int64_t column) const {
    return LoadElement(bytes.data(), dtype, row * columns + column);
  }

  std::int64_t rows, columns;
  DType dtype;
  std::vector<char> bytes;
};

// The exact result, [x.rows, w.rows], and how far another may be from it: twice the largest error
// of the plain computation, plus an epsilon of y's type of the largest element.
inline double ToleranceOf(const Matrix& x, const Matrix& w, const Matrix& b, DType y_dtype,
                          std::vector<double>* exact) {
  double plain_error = 0, largest = 0;
  exact->clear();
  for (std::int64_t row = 0; row < x.rows; ++row) {
    for (std::int64_t out = 0; out < w.rows; ++out) {
      float plain = 0;
      double sum = 0;
      for (std::int64_t in = 0; in < x.columns; ++in) {
        plain += x.at(row, in) * w.at(out, in);
        sum += static_cast<double>(x.at(row, in)) * w.at(out, in);
      }
      plain += b.at(0, out);
      sum += b.at(0, out);
      float rounded = plain;
      StoreElement(&rounded, y_dtype, 0, plain);
      plain_error = std::max(plain_error, std::abs(LoadElement(&rounded, y_dtype, 0) - sum));
      largest = std::max(largest, std::abs(sum));
      exact->push_back(sum);
    }
  }
  return 2 * plain_error + DTypeEpsilon(y_dtype) * largest;
}

inline ProjectionPart PartOf(const Matrix& w, const Matrix* b = nullptr) {
  return {w.rows, w.dtype, w.bytes.data(), b == nullptr ? nullptr : b->bytes.data()};
}

// Dense rows of x into dense rows of y.
inline ProjectionTask TaskOf(const PackedProjection& packed, const Matrix& x, void* y,
                             DType y_dtype) {
  ProjectionTask task;
  task.projection = &packed;
  task.num_rows = x.rows;
  task.x = x.bytes.data();
  task.x_dtype = x.dtype;
  task.x_stride = x.columns;
  task.y = y;
  task.y_dtype = y_dtype;
  task.y_stride = packed.out_features();
  return task;
}

// Rows [begin, end) of a task.
inline ProjectionTask RowsOf(ProjectionTask task, std::int64_t begin, std::int64_t end) {
  const auto skip = [begin](std::int64_t stride, DType dtype) {
    return begin * stride * static_cast<std::int64_t>(DTypeBytes(dtype));
  };
  task.num_rows = end - begin;
  task.x = static_cast<const char*>(task.x) + skip(task.x_stride, task.x_dtype);
  task.y = static_cast<char*>(task.y) + skip(task.y_stride, task.y_dtype);
  task.first_position += begin;
  return task;
}

}  // namespace attention::testing
