#include "server/base/machine_limits.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace attention::server {
namespace {

namespace fs = std::filesystem;

// Version 1 writes "none" as the largest multiple of the page size.
constexpr std::int64_t kNoLimit = std::int64_t{1} << 60;

// The first line; empty when there is none.
std::string FirstLine(const fs::path& path) {
  std::string line;
  std::getline(std::ifstream(path) >> std::ws, line);
  return line;
}

std::vector<std::string> Lines(const fs::path& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

// A hierarchy of control groups as it is mounted.
struct Hierarchy {
  bool is_v2 = false;
  std::set<std::string> controllers;  // of version 1
  std::string root;                   // the group that is seen at the mount point
  fs::path mount_point;
};

// A line of /proc/self/mountinfo: "36 35 98:0 ROOT MOUNT_POINT OPTIONS - TYPE SOURCE OPTIONS".
std::optional<Hierarchy> ParseMount(const std::string& line, const fs::path& root) {
  const std::vector<std::string> halves = absl::StrSplit(line, absl::MaxSplits(" - ", 1));
  if (halves.size() != 2) return std::nullopt;
  const std::vector<std::string> left = absl::StrSplit(halves[0], ' ');
  const std::vector<std::string> right = absl::StrSplit(halves[1], ' ');
  if (left.size() < 5 || right.size() < 3 || !absl::StartsWith(right[0], "cgroup")) {
    return std::nullopt;
  }
  Hierarchy hierarchy;
  hierarchy.is_v2 = right[0] == "cgroup2";
  hierarchy.controllers = absl::StrSplit(right[2], ',');
  hierarchy.root = left[3];
  hierarchy.mount_point = root / fs::path(left[4]).relative_path();
  return hierarchy;
}

// The folders of the group at `path` of the hierarchy and of those it is in, its own first.
std::vector<fs::path> FoldersOf(const Hierarchy& hierarchy, const std::string& path) {
  std::string inside = path;
  if (hierarchy.root != "/") {
    // Without a namespace of its own a container sees the whole path, and its group mounted.
    inside = absl::StartsWith(path, hierarchy.root) ? path.substr(hierarchy.root.size()) : "/";
  }
  fs::path folder = hierarchy.mount_point / fs::path(inside).relative_path();
  folder = folder.lexically_normal();
  const fs::path top = hierarchy.mount_point.lexically_normal();
  if (!absl::StartsWith(folder.string(), top.string()))
    folder = top;  // a path of another namespace
  std::vector<fs::path> folders;
  for (; folder != top && folder.has_relative_path(); folder = folder.parent_path()) {
    if (folder.has_filename()) folders.push_back(folder);
  }
  folders.push_back(top);
  return folders;
}

class Reader {
 public:
  explicit Reader(fs::path root) : root_(std::move(root)) {
    limits_.memory_bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
    limits_.memory_source = "the machine's memory";
  }

  MachineLimits Read() {
    std::vector<Hierarchy> hierarchies;
    for (const std::string& line : Lines(root_ / "proc/self/mountinfo")) {
      if (auto hierarchy = ParseMount(line, root_)) hierarchies.push_back(*std::move(hierarchy));
    }
    for (const std::string& line : Lines(root_ / "proc/self/cgroup")) {
      // "4:memory:/path" of version 1, "0::/path" of version 2.
      const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
      if (parts.size() != 3) continue;
      for (const Hierarchy& hierarchy : hierarchies) ReadHierarchy(hierarchy, parts[1], parts[2]);
    }
    return limits_;
  }

 private:
  void ReadHierarchy(const Hierarchy& hierarchy, const std::string& controllers,
                     const std::string& path) {
    if (hierarchy.is_v2) {
      if (!controllers.empty()) return;
      for (const fs::path& folder : FoldersOf(hierarchy, path)) {
        TakeMemory(folder / "memory.max");
        TakeMemory(folder / "memory.high");
        TakeQuota(folder / "cpu.max", FirstLine(folder / "cpu.max"));
      }
      return;
    }
    for (const absl::string_view controller : absl::StrSplit(controllers, ',')) {
      if (hierarchy.controllers.count(std::string(controller)) == 0) continue;
      for (const fs::path& folder : FoldersOf(hierarchy, path)) {
        if (controller == "memory") TakeMemory(folder / "memory.limit_in_bytes");
        if (controller != "cpu") continue;
        TakeQuota(folder / "cpu.cfs_quota_us",
                  absl::StrCat(FirstLine(folder / "cpu.cfs_quota_us"), " ",
                               FirstLine(folder / "cpu.cfs_period_us")));
      }
    }
  }

  void TakeMemory(const fs::path& file) {
    std::int64_t bytes = 0;
    if (!absl::SimpleAtoi(FirstLine(file), &bytes)) return;  // "max", or no such file
    if (bytes < 0 || bytes >= kNoLimit || bytes >= limits_.memory_bytes) return;
    limits_.memory_bytes = bytes;
    limits_.memory_source = file.string();
  }

  // `text`: "QUOTA PERIOD" in microseconds; -1 and "max" are none.
  void TakeQuota(const fs::path& file, const std::string& text) {
    const std::vector<std::string> parts = absl::StrSplit(text, ' ');
    double quota = 0;
    double period = 0;
    if (parts.size() != 2 || !absl::SimpleAtod(parts[0], &quota) ||
        !absl::SimpleAtod(parts[1], &period) || !(quota > 0) || !(period > 0)) {
      return;
    }
    const double cpus = quota / period;
    if (limits_.cpus && *limits_.cpus <= cpus) return;
    limits_.cpus = cpus;
    limits_.cpu_source = file.string();
  }

  const fs::path root_;
  MachineLimits limits_;
};

}  // namespace

MachineLimits ReadMachineLimits(const std::string& root) { return Reader(root).Read(); }

int UsableCpus(const MachineLimits& limits, int num_cpus) {
  if (!limits.cpus || *limits.cpus >= num_cpus) return num_cpus;
  return std::max(1, static_cast<int>(std::ceil(*limits.cpus)));
}

}  // namespace attention::server
