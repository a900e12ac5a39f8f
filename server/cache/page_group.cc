#include "server/cache/page_group.h"

#include <algorithm>

namespace attention::server {

SharedPage::~SharedPage() {
  if (page_ == nullptr) return;
  account_->pool().Free(page_, generation_, account_->mark());
  account_->GiveBack(bytes_);
}

PageGroup::~PageGroup() {
  if (!is_owner_) return;
  for (const Layer& layer : layers) {
    for (std::size_t i = layer.first != nullptr ? 1 : 0; i < layer.pages.size(); ++i) {
      account_->pool().Free(layer.pages[i], generation_, account_->mark());
    }
  }
  account_->GiveBack(bytes());
}

bool PageGroup::IsSole(const std::shared_ptr<PageGroup>& group) {
  return group.use_count() == 1 &&
         std::all_of(group->layers.begin(), group->layers.end(), [](const Layer& layer) {
           return layer.first == nullptr || layer.first.use_count() == 1;
         });
}

std::size_t PageGroup::bytes() const {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::size_t num_pages = layers[i].pages.size() - (layers[i].first != nullptr ? 1 : 0);
    bytes += num_pages * layout_->page_bytes(static_cast<int>(i));
  }
  return bytes;
}

}  // namespace attention::server
