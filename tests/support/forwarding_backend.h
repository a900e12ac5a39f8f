// A backend that hands every call to another one, for tests that change or count a few of them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kernels/api/attention_backend.h"
#include "kernels/reference/reference_backend.h"

namespace attention::testing {

class ForwardingBackend : public AttentionBackend {
 public:
  explicit ForwardingBackend(
      std::unique_ptr<AttentionBackend> real = reference::MakeReferenceBackend())
      : real_(std::move(real)) {}

  const BackendInfo& info() const override { return real_->info(); }
  absl::Status Supports(const AttentionParams& params, std::int64_t kv_len) const override {
    return real_->Supports(params, kv_len);
  }
  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return real_->PageLayout(geometry, page_size);
  }
  std::string KernelName(const AttentionTask& task) const override {
    return real_->KernelName(task);
  }

  MemoryAllocator& memory() override { return real_->memory(); }
  MemoryAllocator& host_memory() override { return real_->host_memory(); }
  const DeviceCeilings& Ceilings() override { return real_->Ceilings(); }
  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override {
    return real_->Plan(tasks);
  }
  absl::StatusOr<RunState> Run(AttentionPlan& plan,
                               const std::atomic<bool>* should_yield) override {
    return real_->Run(plan, should_yield);
  }
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    return real_->AppendKv(tasks);
  }
  absl::Status SavePages(std::span<const PageCopy> copies) override {
    return real_->SavePages(copies);
  }
  absl::Status RestorePages(std::span<const PageCopy> copies) override {
    return real_->RestorePages(copies);
  }
  absl::Status CopyPages(std::span<const DevicePageCopy> copies) override {
    return real_->CopyPages(copies);
  }
  absl::Status ReadRows(std::span<const StoredRowsTask> tasks) override {
    return real_->ReadRows(tasks);
  }
  absl::Status WriteRows(std::span<const StoredRowsTask> tasks) override {
    return real_->WriteRows(tasks);
  }
  absl::Status MoveTokens(std::span<const MoveTokensTask> tasks) override {
    return real_->MoveTokens(tasks);
  }
  absl::Status RunWeights(const WeightsTask& task) override { return real_->RunWeights(task); }
  void Abandon() override { real_->Abandon(); }
  ProjectionBackend* projections() override { return real_->projections(); }

 protected:
  AttentionBackend& real() const { return *real_; }

 private:
  const std::unique_ptr<AttentionBackend> real_;
};

// The same of projections, which must outlive it.
class ForwardingProjections : public ProjectionBackend {
 public:
  explicit ForwardingProjections(ProjectionBackend& real) : real_(real) {}

  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override {
    return real_.Pack(in_features, parts);
  }
  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
    return real_.PackedBytes(in_features, out_features);
  }
  double chunk_flops() const override { return real_.chunk_flops(); }
  absl::Status Project(std::span<const ProjectionTask> tasks) override {
    return real_.Project(tasks);
  }

 private:
  ProjectionBackend& real_;
};

}  // namespace attention::testing
