// Pages that several caches may read and none writes. They go back to their pool, and their bytes
// to whom they count for, when the last cache lets go: a page counts once, however many read it.
//
// Thread-safety: one thread at a time may call what changes them, and only while no other cache has
// them; destruction may happen on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "server/cache/cache_layout.h"
#include "server/cache/page_account.h"

namespace attention::server {

// One page, which is full of tokens of one cache and may be less full of tokens of others.
class SharedPage {
 public:
  // Has no page yet.
  SharedPage(std::shared_ptr<const PageAccount> account, int generation, std::size_t bytes)
      : account_(std::move(account)), generation_(generation), bytes_(bytes) {}
  ~SharedPage();
  SharedPage(const SharedPage&) = delete;
  SharedPage& operator=(const SharedPage&) = delete;

  // Takes over a page that counts already, as it does until the end or TakeBack.
  void Own(void* page) noexcept { page_ = page; }
  void TakeBack() noexcept { page_ = nullptr; }
  bool is_owner() const { return page_ != nullptr; }

 private:
  const std::shared_ptr<const PageAccount> account_;
  const int generation_;
  const std::size_t bytes_;
  void* page_ = nullptr;
};

// Full pages of all layers of a cache, a stretch of each layer's.
class PageGroup {
 public:
  struct Layer {
    std::int64_t begin = 0;  // the first one's index in the layer's page table
    std::vector<void*> pages;
    std::shared_ptr<SharedPage> first;     // owns pages[0], if others had that one already
    std::vector<std::uint32_t> checksums;  // of the pages' tokens

    bool Has(std::int64_t page) const {
      return page >= begin && page < begin + static_cast<std::int64_t>(pages.size());
    }
  };

  // Does not own the pages yet.
  PageGroup(std::shared_ptr<const PageAccount> account, std::shared_ptr<const CacheLayout> layout,
            int generation)
      : layers(static_cast<std::size_t>(layout->num_layers())),
        account_(std::move(account)),
        layout_(std::move(layout)),
        generation_(generation) {}
  ~PageGroup();
  PageGroup(const PageGroup&) = delete;
  PageGroup& operator=(const PageGroup&) = delete;

  // Takes over pages that count already, as they do until the end.
  void Own() noexcept { is_owner_ = true; }
  // Those that are here belong to the cache again, which frees and counts them.
  void TakeBack() noexcept { is_owner_ = false; }
  // True when no other cache reads what is here.
  static bool IsSole(const std::shared_ptr<PageGroup>& group);

  // The bytes of the pages that no SharedPage owns.
  std::size_t bytes() const;

  std::vector<Layer> layers;

 private:
  const std::shared_ptr<const PageAccount> account_;
  const std::shared_ptr<const CacheLayout> layout_;
  const int generation_;
  bool is_owner_ = false;
};

}  // namespace attention::server
