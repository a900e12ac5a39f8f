#include "kernels/base/cpu_topology.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>

#include "kernels/base/check.h"
#include "kernels/base/cpu_affinity.h"

namespace attention {
namespace {

constexpr int kMaxCpu = 8191;

// Takes a number off the front of the text; false when there is none.
bool TakeNumber(std::string_view& text, int* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  if (error != std::errc() || *value < 0 || *value > kMaxCpu) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

// Cuts a list into `count` parts whose sizes differ by one at the most.
void Cut(const CpuList& cpus, std::size_t count, std::vector<CpuList>& parts) {
  auto begin = cpus.begin();
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t size = cpus.size() / count + (i < cpus.size() % count ? 1 : 0);
    parts.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(size));
    begin += static_cast<std::ptrdiff_t>(size);
  }
}

// How many groups each node gets: one, and each further one goes to the node that has the most CPUs
// for each of its groups.
std::vector<std::size_t> GroupsOfNodes(const std::vector<CpuList>& nodes, std::size_t num_groups) {
  std::vector<std::size_t> groups(nodes.size(), 1);
  for (std::size_t i = nodes.size(); i < num_groups; ++i) {
    std::size_t most = 0;
    for (std::size_t node = 1; node < nodes.size(); ++node) {
      if (nodes[node].size() * groups[most] > nodes[most].size() * groups[node]) most = node;
    }
    ++groups[most];
  }
  return groups;
}

}  // namespace

CpuList ParseCpuList(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  CpuList cpus;
  while (!text.empty()) {
    int first = 0;
    if (!TakeNumber(text, &first)) return {};
    int last = first;
    if (!text.empty() && text.front() == '-') {
      text.remove_prefix(1);
      if (!TakeNumber(text, &last) || last < first) return {};
    }
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    if (text.empty()) break;
    if (text.front() != ',') return {};
    text.remove_prefix(1);
  }
  return cpus;
}

std::vector<CpuList> NumaNodes(const std::string& sysfs) {
  const CpuList available = AvailableCpus();
  std::map<int, CpuList> nodes;  // by number, so that their order is the same every day
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(sysfs, error)) {
    const std::string name = entry.path().filename().string();
    std::string_view number(name);
    int node = 0;
    if (!number.starts_with("node")) continue;
    number.remove_prefix(4);
    if (!TakeNumber(number, &node) || !number.empty()) continue;
    std::ifstream file(entry.path() / "cpulist");
    std::string text;
    std::getline(file, text);
    for (const int cpu : ParseCpuList(text)) {
      if (std::binary_search(available.begin(), available.end(), cpu)) nodes[node].push_back(cpu);
    }
  }
  std::vector<CpuList> lists;
  lists.reserve(nodes.size());
  for (auto& [node, cpus] : nodes) lists.push_back(std::move(cpus));
  if (lists.empty()) lists.push_back(available);
  return lists;
}

std::vector<CpuList> DivideCpus(const std::vector<CpuList>& nodes, int num_groups) {
  ATTENTION_CHECK(num_groups >= 1 && !nodes.empty());
  const auto count = static_cast<std::size_t>(num_groups);
  std::vector<CpuList> groups;
  if (count >= nodes.size()) {
    const std::vector<std::size_t> of_node = GroupsOfNodes(nodes, count);
    for (std::size_t node = 0; node < nodes.size(); ++node) Cut(nodes[node], of_node[node], groups);
    return groups;
  }
  groups.resize(count);
  for (std::size_t node = 0; node < nodes.size(); ++node) {
    CpuList& group = groups[node * count / nodes.size()];
    group.insert(group.end(), nodes[node].begin(), nodes[node].end());
  }
  return groups;
}

}  // namespace attention
