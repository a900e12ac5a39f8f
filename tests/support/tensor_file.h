// Files in a folder of a test's own, .safetensors files among them, written by hand.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace attention::testing {

class TestFolder {
 public:
  TestFolder()
      : path_(std::filesystem::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  TestFolder(const TestFolder&) = delete;

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = (path_ / name).string();
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::string WriteTensors(const std::string& header, const std::string& data) {
    std::string length(8, '\0');
    const std::uint64_t size = header.size();
    std::memcpy(length.data(), &size, 8);
    return Write("model.safetensors", length + header + data);
  }

  // Four 2 x 2 matrices of float32 named w0 to w3, the i-th full of i, and `more` entries of the
  // header.
  std::string WriteModel(const std::string& more = "") {
    std::string header = R"({"__metadata__":{"format":"pt"})" + more;
    std::string data;
    for (int i = 0; i < 4; ++i) {
      header += ",\"w" + std::to_string(i) + R"(":{"dtype":"F32","shape":[2,2],"data_offsets":[)" +
                std::to_string(16 * i) + "," + std::to_string(16 * i + 16) + "]}";
      for (int element = 0; element < 4; ++element) {
        const auto value = static_cast<float>(i);
        data.append(reinterpret_cast<const char*>(&value), 4);
      }
    }
    return WriteTensors(header + "}", data);
  }

 private:
  const std::filesystem::path path_;
};

}  // namespace attention::testing
