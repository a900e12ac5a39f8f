// Memory of packed weights: large ones go back to the system when they are freed, whatever the
// process's allocator keeps for itself.
#pragma once

#include <cstddef>
#include <utility>

namespace attention::cpu {

class WeightMemory {
 public:
  // Throws std::bad_alloc when memory is out.
  explicit WeightMemory(std::size_t size);
  WeightMemory(WeightMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  WeightMemory& operator=(WeightMemory&&) = delete;
  ~WeightMemory();

  // 64-byte aligned.
  char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace attention::cpu
