#include "server/wire/request_tensors.h"

#include <gmock/gmock.h>

#include <random>
#include <string>
#include <vector>

#include "kernels/api/rows_cursor.h"
#include "kernels/reference/reference_backend.h"

namespace attention::server {
namespace {

constexpr int kHeads = 3;
constexpr int kDim = 5;  // rows of 60 bytes, on no boundary that a socket would choose
constexpr std::size_t kRowBytes = kHeads * kDim * sizeof(float);

// A tensor of rows whose bytes count up, received in slices that end at the given places.
class Received {
 public:
  Received(std::int64_t num_rows, const std::vector<std::size_t>& cuts) {
    v1::Tensor tensor;
    tensor.set_dtype(v1::DTYPE_FLOAT32);
    for (const std::int64_t dimension : {num_rows, std::int64_t{kHeads}, std::int64_t{kDim}}) {
      tensor.add_shape(dimension);
    }
    for (std::size_t i = 0; i < num_rows * kRowBytes; ++i) {
      bytes_.push_back(static_cast<char>(i * 7 + i / 256));
    }
    tensor.set_data(bytes_);
    const std::string message = tensor.SerializeAsString();
    const std::size_t data_begin = message.size() - bytes_.size();
    std::vector<grpc::Slice> slices;
    std::size_t begin = 0;
    for (const std::size_t cut : cuts) {
      slices.emplace_back(message.substr(begin, data_begin + cut - begin));
      begin = data_begin + cut;
    }
    slices.emplace_back(message.substr(begin));
    EXPECT_TRUE(received_.Parse({slices.data(), slices.size()}, &tensor_).ok());
  }

  const codec::ReceivedMessage& message() const { return received_; }
  const v1::Tensor& tensor() const { return tensor_; }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
  codec::ReceivedMessage received_;
  v1::Tensor tensor_;
};

class RequestTensorsTest : public ::testing::Test {
 protected:
  // Places the rows and reads them back through their pieces.
  std::string RowsOf(const Received& received) {
    RequestTensors tensors(received.message(), pool_);
    RowsView rows = DenseRows(static_cast<const void*>(nullptr), DType::kFloat32, kHeads, kDim);
    pieces_.clear();
    tensors.PlaceRows(received.tensor(), &rows, &pieces_);
    copied_bytes_ = tensors.copied_bytes();
    RowsCursor cursor(rows, pieces_, 0);
    std::string bytes;
    for (std::int64_t row = 0; row < received.tensor().shape(0); ++row) {
      bytes.append(cursor.At(row, 0), kRowBytes);
    }
    return bytes;
  }

  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  BufferPool pool_{backend_->memory(), std::size_t{1} << 20};
  std::vector<RowsPiece> pieces_;
  std::int64_t copied_bytes_ = 0;
};

TEST_F(RequestTensorsTest, RowsInOnePieceStayWhereTheyAre) {
  const Received received(4, {0});
  EXPECT_EQ(RowsOf(received), received.bytes());
  EXPECT_TRUE(pieces_.empty());
  EXPECT_EQ(copied_bytes_, 4 * static_cast<std::int64_t>(kRowBytes));
}

TEST_F(RequestTensorsTest, OnlyARowThatWasCutIsPutTogether) {
  const Received received(10, {0, 4 * kRowBytes + 7});
  EXPECT_EQ(RowsOf(received), received.bytes());
  ASSERT_EQ(pieces_.size(), 3u);
  EXPECT_EQ(pieces_[1].begin_row, 4);
  EXPECT_EQ(pieces_[2].begin_row, 5);
  EXPECT_EQ(copied_bytes_, 11 * static_cast<std::int64_t>(kRowBytes));
}

TEST_F(RequestTensorsTest, CutsBetweenRowsCostNothing) {
  const Received received(10, {0, 2 * kRowBytes, 9 * kRowBytes});
  EXPECT_EQ(RowsOf(received), received.bytes());
  EXPECT_EQ(pieces_.size(), 3u);
  EXPECT_EQ(copied_bytes_, 10 * static_cast<std::int64_t>(kRowBytes));
}

TEST_F(RequestTensorsTest, ARowMayComeInManyPieces) {
  std::vector<std::size_t> cuts;
  for (std::size_t cut = 0; cut < 3 * kRowBytes; cut += 11) cuts.push_back(cut);
  const Received received(3, cuts);
  EXPECT_EQ(RowsOf(received), received.bytes());
}

TEST_F(RequestTensorsTest, AnyCutsGiveTheSameRows) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const std::int64_t num_rows = random() % 20;
    std::vector<std::size_t> cuts;
    for (std::size_t cut = 0; cut < num_rows * kRowBytes; cut += random() % 150) {
      cuts.push_back(cut);
    }
    const Received received(num_rows, cuts);
    ASSERT_EQ(RowsOf(received), received.bytes()) << "round " << round;
  }
}

TEST_F(RequestTensorsTest, NoRowsAreLegal) {
  const Received received(0, {});
  EXPECT_EQ(RowsOf(received), "");
}

}  // namespace
}  // namespace attention::server
