#include "server/port_file.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iterator>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

std::string PathOf(const std::string& name) {
  return ::testing::TempDir() + "port-file-" + name + "-" + std::to_string(getpid());
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// No file of this process can grow, as on a full disk.
class FullDisk {
 public:
  FullDisk() : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &limit_);
    const rlimit none{0, limit_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &none);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &limit_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit limit_;
  sighandler_t handler_;
};

TEST(PortFileTest, HasTheAddressesAsJson) {
  const std::string path = PathOf("good");
  ASSERT_TRUE(WritePortFile(path, {"127.0.0.1:7070", "unix:/run/a.sock"}, "127.0.0.1:7071").ok());
  std::ifstream file(path);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(text,
            "{\"admin_listen\":\"127.0.0.1:7071\","
            "\"listen\":[\"127.0.0.1:7070\",\"unix:/run/a.sock\"]}\n");
  EXPECT_FALSE(Exists(path + ".tmp"));
  unlink(path.c_str());
}

TEST(PortFileTest, IsNotWrittenWithoutAPath) {
  EXPECT_TRUE(WritePortFile("", {"127.0.0.1:7070"}, "").ok());
}

TEST(PortFileTest, AFullDiskIsNamedAndNothingIsLeft) {
  const std::string path = PathOf("full");
  absl::Status status;
  {
    FullDisk full;
    status = WritePortFile(path, {"127.0.0.1:7070"}, "127.0.0.1:7071");
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path + ".tmp: File too large"));
  EXPECT_FALSE(Exists(path));
  EXPECT_FALSE(Exists(path + ".tmp"));
}

TEST(PortFileTest, AFolderInTheWayIsNamedAndNothingIsLeft) {
  const std::string path = PathOf("folder");
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  const absl::Status status = WritePortFile(path, {"127.0.0.1:7070"}, "127.0.0.1:7071");
  EXPECT_THAT(std::string(status.message()), HasSubstr(path + ": Is a directory"));
  EXPECT_FALSE(Exists(path + ".tmp"));
  rmdir(path.c_str());
}

}  // namespace
}  // namespace attention::server
