#include "server/config/limits_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"
#include "server/config/byte_size.h"
#include "server/config/nearest_name.h"

namespace attention::server {
namespace {

constexpr std::size_t kMaxTenantBytes = 128;  // as in a call's metadata

std::string TextOf(const toml::node& node) {
  std::ostringstream text;
  node.visit([&](const auto& value) { text << value; });
  return text.str().substr(0, kMaxQuotedBytes);
}

class LimitsReader {
 public:
  explicit LimitsReader(const std::string& path) : path_(path) {}

  absl::StatusOr<TenantLimitsSet> Read(const toml::table& root, const TenantLimits& base) const {
    TenantLimitsSet set;
    set.others = base;
    ATTENTION_RETURN_IF_ERROR(CheckKeys(root, "", {"default", "tenant"}));
    if (const toml::node* others = root.get("default")) {
      ATTENTION_RETURN_IF_ERROR(ReadTable(*others, "default", &set.others));
    }
    const toml::node* tenants = root.get("tenant");
    if (tenants == nullptr) return set;
    if (!tenants->is_table()) return Wrong(*tenants, "tenant", "tables such as [tenant.NAME]");
    for (const auto& [name, node] : *tenants->as_table()) {
      const std::string tenant(name.str());
      const std::string at = absl::StrCat("tenant.", Quoted(tenant));
      if (!IsTenantName(tenant)) {
        return Invalid(node, absl::StrCat(at, " has ", tenant.size(), " bytes, expected 1 to ",
                                          kMaxTenantBytes, " printable ASCII characters"));
      }
      TenantLimits& limits = set.listed[tenant];
      limits = set.others;
      ATTENTION_RETURN_IF_ERROR(ReadTable(node, at, &limits));
    }
    return set;
  }

 private:
  static bool IsTenantName(const std::string& name) {
    return !name.empty() && name.size() <= kMaxTenantBytes &&
           std::all_of(name.begin(), name.end(), IsPrintable);
  }

  absl::Status Invalid(const toml::node& node, absl::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ", line ", node.source().begin.line, ": ", message));
  }

  absl::Status Wrong(const toml::node& node, absl::string_view key,
                     absl::string_view expected) const {
    return Invalid(node,
                   absl::StrCat(key, " is ", Printable(TextOf(node)), ", expected ", expected));
  }

  absl::Status CheckKeys(const toml::table& table, absl::string_view prefix,
                         const std::vector<std::string>& known) const {
    for (const auto& [name, node] : table) {
      const std::string key(name.str());
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      const std::string nearest = NearestName(key, known);
      return Invalid(node,
                     absl::StrCat(prefix, Quoted(key), " is no key of tenants' limits",
                                  nearest.empty() ? "" : absl::StrCat(", did you mean ", nearest)));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTable(const toml::node& node, const std::string& at,
                         TenantLimits* limits) const {
    const toml::table* table = node.as_table();
    if (table == nullptr) return Wrong(node, at, "a table");
    ATTENTION_RETURN_IF_ERROR(
        CheckKeys(*table, absl::StrCat(at, "."),
                  {"kv-bytes", "layer-bytes", "sessions", "streams", "queued-bytes", "work-rate",
                   "share", "highest-priority"}));
    ATTENTION_RETURN_IF_ERROR(ReadBytes(*table, at, "kv-bytes", &limits->kv_bytes));
    ATTENTION_RETURN_IF_ERROR(ReadBytes(*table, at, "layer-bytes", &limits->layer_bytes));
    ATTENTION_RETURN_IF_ERROR(ReadCount(*table, at, "sessions", &limits->sessions));
    ATTENTION_RETURN_IF_ERROR(ReadCount(*table, at, "streams", &limits->streams));
    ATTENTION_RETURN_IF_ERROR(ReadBytes(*table, at, "queued-bytes", &limits->queued_bytes));
    ATTENTION_RETURN_IF_ERROR(ReadRate(*table, at, &limits->work_rate));
    ATTENTION_RETURN_IF_ERROR(ReadShare(*table, at, &limits->share));
    return ReadPriority(*table, at, &limits->highest_priority);
  }

  static bool IsNone(const toml::node& node) { return node.value<std::string>() == "none"; }

  absl::Status ReadBytes(const toml::table& table, const std::string& at, const char* key,
                         std::int64_t* bytes) const {
    const toml::node* node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    std::optional<std::int64_t> value;
    if (IsNone(*node)) {
      value = TenantLimits::kNone;
    } else if (node->is_string()) {
      value = ParseByteSize(node->as_string()->get());
    } else if (node->is_integer()) {
      value = node->as_integer()->get();
    }
    if (!value || *value < 0) {
      return Wrong(*node, absl::StrCat(at, ".", key),
                   "a whole number of bytes such as 1073741824, \"512MiB\" or \"2GiB\", or "
                   "\"none\"");
    }
    *bytes = *value;
    return absl::OkStatus();
  }

  absl::Status ReadCount(const toml::table& table, const std::string& at, const char* key,
                         std::int64_t* count) const {
    const toml::node* node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    if (IsNone(*node)) {
      *count = TenantLimits::kNone;
    } else if (node->is_integer() && node->as_integer()->get() >= 0) {
      *count = node->as_integer()->get();
    } else {
      return Wrong(*node, absl::StrCat(at, ".", key), "a whole number of at least 0, or \"none\"");
    }
    return absl::OkStatus();
  }

  absl::Status ReadRate(const toml::table& table, const std::string& at, double* rate) const {
    const toml::node* node = table.get("work-rate");
    if (node == nullptr) return absl::OkStatus();
    const std::optional<double> value =
        IsNone(*node) ? std::numeric_limits<double>::infinity() : NumberOf(*node);
    if (!value || !(*value >= TenantLimits::kMinRate) ||
        (!IsNone(*node) && *value > TenantLimits::kMaxRate)) {
      return Wrong(*node, absl::StrCat(at, ".work-rate"),
                   absl::StrCat("seconds of computing in a second from ", TenantLimits::kMinRate,
                                " to ", TenantLimits::kMaxRate, ", or \"none\""));
    }
    *rate = *value;
    return absl::OkStatus();
  }

  absl::Status ReadShare(const toml::table& table, const std::string& at, double* share) const {
    const toml::node* node = table.get("share");
    if (node == nullptr) return absl::OkStatus();
    const std::optional<double> value = NumberOf(*node);
    if (!value || !(*value >= TenantLimits::kMinShare) || !(*value <= TenantLimits::kMaxShare)) {
      return Wrong(
          *node, absl::StrCat(at, ".share"),
          absl::StrCat("a number from ", TenantLimits::kMinShare, " to ", TenantLimits::kMaxShare));
    }
    *share = *value;
    return absl::OkStatus();
  }

  absl::Status ReadPriority(const toml::table& table, const std::string& at,
                            Priority* priority) const {
    const toml::node* node = table.get("highest-priority");
    if (node == nullptr) return absl::OkStatus();
    const std::optional<Priority> value =
        ParsePriority(node->is_string() ? node->as_string()->get() : "");
    if (!value) {
      return Wrong(*node, absl::StrCat(at, ".highest-priority"), "\"high\", \"normal\" or \"low\"");
    }
    *priority = *value;
    return absl::OkStatus();
  }

  // TOML's integers are no floating-point numbers, but people write 2 for 2.0.
  static std::optional<double> NumberOf(const toml::node& node) {
    if (node.is_integer()) return static_cast<double>(node.as_integer()->get());
    if (node.is_floating_point()) return node.as_floating_point()->get();
    return std::nullopt;
  }

  const std::string& path_;
};

}  // namespace

absl::StatusOr<TenantLimitsSet> ParseLimits(absl::string_view text, const std::string& path,
                                            const TenantLimits& base) {
  try {
    const toml::table root = toml::parse(std::string_view(text.data(), text.size()), path);
    return LimitsReader(path).Read(root, base);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ", line ", error.source().begin.line,
                     ": this is no TOML: ", Printable(std::string(error.description()))));
  }
}

absl::StatusOr<TenantLimitsSet> ReadLimitsFile(const std::string& path, const TenantLimits& base) {
  std::ifstream stream(path);
  std::error_code error;
  // A folder can be opened, and reads as empty.
  if (!stream || std::filesystem::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, " cannot be read"));
  }
  std::stringstream text;
  text << stream.rdbuf();
  return ParseLimits(text.str(), path, base);
}

}  // namespace attention::server
