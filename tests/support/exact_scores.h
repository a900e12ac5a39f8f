// Problems whose scores are floats of any magnitude, exactly: what float64 computes from them is
// what float32 has to give, whatever rounding does to ordinary scores.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

enum class ScoreKind {
  kDots,    // products of any magnitude that the types hold, of one row by one key each
  kBias,    // a bias alone, of any bits that make a finite number
  kNear,    // whole numbers far from 0 and not far from each other: a bias plus a dot product
  kSlopes,  // ALiBi, slopes of any magnitude
};

struct ExactSpec {
  ScoreKind kind = ScoreKind::kDots;
  int num_q_heads = 2;
  int num_kv_heads = 1;
  int head_dim_qk = 8;
  int head_dim_v = 8;
  DType dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  DType bias_dtype = DType::kFloat32;
  std::int64_t q_len = 7;
  std::int64_t kv_len = 50;
  bool is_causal = false;
  bool has_sink_logits = false;
  // Every score of kBias; drawn for each element unless set.
  std::optional<float> bias = {};
  std::uint32_t seed = 1;

  std::string Describe() const;
};

class ExactProblem {
 public:
  explicit ExactProblem(const ExactSpec& spec);
  ExactProblem(const ExactProblem&) = delete;

  const ExactSpec& spec() const { return spec_; }
  const AttentionTask& task() const { return task_; }

 private:
  void DrawScores();

  ExactSpec spec_;
  std::uint64_t state_;
  std::vector<char> q_, bias_;
  std::vector<float> k_, v_, slopes_, sinks_;
  AttentionTask task_;

  std::uint32_t Draw();
  int DrawBetween(int low, int high);
  float DrawFinite(DType dtype);
};

// A drawn spec: the number says kind, types, lengths and seed.
ExactSpec DrawnSpec(std::uint32_t number);

// Outputs, log-sum-exps, column sums and weights of the backend against float64, and that weights
// of a row add up to 1.
void ExpectExact(AttentionBackend& backend, const ExactProblem& problem);

}  // namespace attention::testing
