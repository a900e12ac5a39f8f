#include "server/wire/request_tensors.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/divide.h"
#include "server/base/at_field.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// Small tensors share a buffer: the queries of 64 sessions' steps need not be 64 buffers.
constexpr std::size_t kSharedBufferBytes = 64 * 1024;

// Cuts received bytes into pieces of whole rows.
class RowsPieces {
 public:
  RowsPieces(const RowsView& prototype, std::size_t row_bytes, std::vector<RowsPiece>* pieces)
      : prototype_(prototype), row_bytes_(row_bytes), pieces_(pieces) {}

  // The next bytes. `reserve` gives the place of a row that is put together from several of them.
  template <typename Reserve>
  void Add(absl::string_view bytes, Reserve reserve) {
    if (cut_filled_ > 0) {
      const std::size_t count = std::min(bytes.size(), row_bytes_ - cut_filled_);
      AppendToCutRow(bytes.substr(0, count));
      bytes.remove_prefix(count);
    }
    const std::size_t whole = bytes.size() / row_bytes_;
    if (whole > 0) AddPiece(bytes.data(), static_cast<std::int64_t>(whole));
    bytes.remove_prefix(whole * row_bytes_);
    if (bytes.empty()) return;
    cut_row_ = reserve();
    AddPiece(cut_row_, 1);
    AppendToCutRow(bytes);
  }

 private:
  void AddPiece(const char* data, std::int64_t count) {
    RowsPiece piece{next_row_, prototype_};
    piece.rows.data = data;
    pieces_->push_back(piece);
    next_row_ += count;
  }

  void AppendToCutRow(absl::string_view bytes) {
    std::memcpy(cut_row_ + cut_filled_, bytes.data(), bytes.size());
    cut_filled_ = (cut_filled_ + bytes.size()) % row_bytes_;
  }

  const RowsView prototype_;
  const std::size_t row_bytes_;
  std::vector<RowsPiece>* const pieces_;
  std::int64_t next_row_ = 0;
  char* cut_row_ = nullptr;
  std::size_t cut_filled_ = 0;  // 0: no row is open
};

}  // namespace

absl::StatusOr<char*> RequestTensors::Resolve(absl::string_view field,
                                              const v1::SharedMemoryRef& place,
                                              std::int64_t bytes) {
  if (regions_ == nullptr) {
    return ReasonedError(
        absl::StatusCode::kFailedPrecondition, ErrorReason::kRegionNotFound,
        absl::StrCat(field, " is in shared memory, which this server does not offer"));
  }
  // The tensors of most requests lie in one region, which is looked for once.
  if (used_regions_.empty() || last_region_id_ != place.region_id()) {
    auto found = regions_->Find(place.region_id(), tenant_);
    if (!found.ok()) return AtField(field, found.status());
    used_regions_.push_back(*std::move(found));
    last_region_id_ = place.region_id();
  }
  const SharedRegion& region = *used_regions_.back();
  if (!region.Contains(place.offset(), bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", bytes, " bytes at offset ", place.offset(),
                     ", expected them within the region's ", region.size(), " bytes"));
  }
  return region.data() + place.offset();
}

absl::Status RequestTensors::ResolveTensor(absl::string_view field, const v1::Tensor& tensor,
                                           std::int64_t bytes) {
  const std::string name = absl::StrCat(field, ".shared_memory");
  if (Size(tensor) > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data has ", Size(tensor), " bytes, expected none with ", name));
  }
  ATTENTION_ASSIGN_OR_RETURN(shared_[&tensor], Resolve(name, tensor.shared_memory(), bytes));
  return absl::OkStatus();
}

char* RequestTensors::Reserve(std::size_t bytes) {
  const std::size_t room = RoundUp(bytes, kCacheLineBytes);
  if (buffers_.empty() || used_ + room > buffers_.back().capacity()) {
    const bool is_first = buffers_.empty();  // of a small request, most likely its only one
    buffers_.push_back(pool_->Get(is_first ? room : std::max(room, kSharedBufferBytes), mark_));
    used_ = 0;
  }
  char* place = buffers_.back().data() + used_;
  used_ += room;
  return place;
}

const char* RequestTensors::Place(const v1::Tensor& tensor) {
  if (tensor.has_shared_memory()) return shared_.at(&tensor);
  const codec::TensorBytes bytes = message_->Data(tensor);
  char* place = Reserve(bytes.size());
  bytes.CopyTo(place);
  copied_bytes_ += static_cast<std::int64_t>(bytes.size());
  return place;
}

void RequestTensors::PlaceRows(const v1::Tensor& tensor, RowsView* rows,
                               std::vector<RowsPiece>* pieces) {
  if (tensor.has_shared_memory()) {
    rows->data = shared_.at(&tensor);
    return;
  }
  const codec::TensorBytes bytes = message_->Data(tensor);
  copied_bytes_ += static_cast<std::int64_t>(bytes.size());
  if (bytes.pieces().size() <= 1) {
    rows->data = bytes.pieces().empty() ? Reserve(0) : bytes.pieces()[0].data();
    return;
  }
  const auto row_bytes = static_cast<std::size_t>(rows->row_stride) * DTypeBytes(rows->dtype);
  RowsPieces cut(*rows, row_bytes, pieces);
  for (const absl::string_view piece : bytes.pieces()) {
    cut.Add(piece, [&] {
      copied_bytes_ += static_cast<std::int64_t>(row_bytes);
      return Reserve(row_bytes);
    });
  }
}

}  // namespace attention::server
