// Lets an allocation of this thread fail, so that a test can try every one of them in turn.
// Replaces operator new of the binary that it is linked into.
#pragma once

namespace attention::testing {

// While it lives, the n-th operator new of this thread throws std::bad_alloc, once; n is 1 for the
// first. One at a time in each thread.
class FailingAllocation {
 public:
  explicit FailingAllocation(int n);
  ~FailingAllocation();
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;

  // False: there were fewer than n.
  bool has_failed() const;
};

}  // namespace attention::testing
