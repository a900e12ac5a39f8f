// Lists that are answered page by page, in ascending order of their ids.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::server {

// Fills a page of a List response. `list(after_id, count)` returns a vector of pointers to at most
// `count` entries that come after the id; `add(entry)` encodes one and returns its id.
template <typename Request, typename List, typename Add, typename Response>
absl::Status FillPage(const Request& request, const List& list, const Add& add,
                      Response* response) {
  constexpr int kDefaultPageSize = 100;
  constexpr int kMaxPageSize = 1000;
  const int page_size = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  if (page_size < 0 || page_size > kMaxPageSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size is ", page_size, ", expected 0 to ", kMaxPageSize));
  }
  const auto limit = static_cast<std::size_t>(page_size);
  const auto entries = list(request.page_token(), limit + 1);
  std::string last_id;
  for (std::size_t i = 0; i < entries.size() && i < limit; ++i) last_id = add(*entries[i]);
  if (entries.size() > limit) response->set_next_page_token(last_id);
  return absl::OkStatus();
}

}  // namespace attention::server
