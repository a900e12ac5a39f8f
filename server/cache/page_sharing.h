// The parts of PageTables::Share, which are in two files.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "server/cache/page_group.h"
#include "server/cache/page_tables.h"

namespace attention::server {

struct PageTables::Sharing {
  PageTables copy;
  std::shared_ptr<PageGroup> group;
  std::vector<std::vector<std::uint32_t>> rests;   // checksums that stay behind the group's
  std::vector<std::shared_ptr<SharedPage>> pages;  // that become shared and get their page
  std::vector<std::vector<WindowPage>> windows;    // what the source will share, of each layer
};

}  // namespace attention::server
